"""The work that all are measured on, and the hand-written loops that do it."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from tests.benchmarks.tasks import Batch, Task

LOG_INTERVAL = 50


@dataclass(frozen=True)
class Work:
    """What to train, and how; `features` adds all that a real training has besides.

    The features are a progress bar, a TensorBoard scalar every 50 steps, validation, and the last
    and the best checkpoint after every epoch.

    Attributes:
        task: The model and the kind of data.
        data: The training and the validation data, for trainers that make the loaders themselves.
        train: The batches to train on: a list, or a loader.
        val: The batches to validate on.
        folder: The folder of the files that are written.
        epochs: The number of epochs.
        features: Whether to do all that a real training has besides.
    """

    task: Task
    data: dict[str, Any]
    train: Any
    val: Any
    folder: Path
    epochs: int
    features: bool

    @classmethod
    def of(cls, folder: Path, task: Task, *, steps: int, epochs: int, features: bool) -> Work:
        data = {"train": task.make_data(steps), "val": task.make_data(max(steps // 10, 1))}
        train, val = (task.loader(data[key], shuffle=key == "train") for key in data)
        return cls(task, data, train, val, folder, epochs, features)


class Marks:
    """When the epochs began. An epoch lasts until the next one, with all that lies between."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def add(self) -> None:
        self.times.append(time.perf_counter())

    @property
    def epochs(self) -> list[float]:
        """Seconds of each epoch but the first, which warms up, and the last, which has no next."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [end - start for start, end in pairs][1:]


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def by_hand(work: Work) -> list[float]:
    """The loop that everybody writes."""
    return _loop(work, accelerated=False)


def by_hand_on_accelerate(work: Work) -> list[float]:
    """The same on Accelerate, as its documentation has it."""
    return _loop(work, accelerated=True)


def _loop(work: Work, *, accelerated: bool) -> list[float]:
    model, criterion, marks = work.task.make_model(), nn.CrossEntropyLoss(), Marks()
    optimizer = make_optimizer(model)
    backward, loader = torch.Tensor.backward, work.train
    if accelerated:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        loader = work.train if isinstance(work.train, list) else accelerator.prepare(work.train)
        backward = accelerator.backward
    extras = Extras(work, model, optimizer) if work.features else None
    for epoch in range(work.epochs):
        marks.add()
        model.train()
        for input, target in loader if extras is None else extras.shown(loader, epoch):
            loss = criterion(model(input), target)
            backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if extras is not None:
                extras.log(loss)
        if extras is not None:
            extras.end_epoch(criterion)
    if extras is not None:
        extras.writer.close()
    return marks.epochs


class Extras:
    """What a hand-written loop does besides training, where it does it all."""

    def __init__(self, work: Work, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.work, self.model, self.optimizer = work, model, optimizer
        self.folder = work.folder / f"hand-{time.monotonic_ns()}"
        self.writer = SummaryWriter(str(self.folder))
        self.step, self.best = 0, float("inf")

    def shown(self, batches: Iterable[Batch], epoch: int) -> Iterator[Batch]:
        return iter(tqdm(batches, desc=f"epoch {epoch}", file=sys.stderr))

    def log(self, loss: Tensor) -> None:
        self.step += 1
        if self.step % LOG_INTERVAL == 0:
            self.writer.add_scalar("train/loss", loss.item(), self.step)

    def end_epoch(self, criterion: nn.Module) -> None:
        score = validate(self.model, criterion, self.work.val)
        self.writer.add_scalar("val/loss", score, self.step)
        self.save("last")
        if score < self.best:
            self.best = score
            self.save("best")

    def save(self, name: str) -> None:
        """Replace the file, durably: what a loop does whose checkpoint must outlive a crash."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        path = self.folder / f"{name}.pth"
        with path.with_suffix(".tmp").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").replace(path)


def validate(model: nn.Module, criterion: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean loss without gradients."""
    model.eval()
    with torch.no_grad():
        losses = [criterion(model(input), target) for input, target in batches]
    return float(torch.stack(losses).mean())


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
