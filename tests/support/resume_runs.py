"""A tiny run whose every random stream matters: 6 steps per epoch, for 2 epochs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from danling.callback import Callback
from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.callbacks.logging import Logging
from danling.callbacks.results import Results
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.run_record import RunRecord
from danling.runner.accelerate import AccelerateRunner

STEPS = 6  # of an epoch


class Noisy(Dataset):
    """Regression samples that draw from python, numpy and torch; they count how often."""

    def __init__(self, size: int = 4 * STEPS) -> None:
        self.inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.reads.append(index)
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1)) + torch.randn(4) * 0.1
        return self.inputs[index] + noise, self.inputs[index].sum().reshape(1)


class Runner(AccelerateRunner):
    """Evaluates to the scores of a script, where there is one, by epoch."""

    script: tuple[float, ...] = ()

    def evaluate_step(self, batch: Any) -> Any:
        if not self.script:
            return super().evaluate_step(batch)
        score = self.script[min(self.epoch, len(self.script) - 1)]
        return {"loss": torch.tensor(float(score))}


def make_runner(
    callbacks: Iterable[Callback] = (),
    *,
    scores: tuple[float, ...] = (),
    samples: int = 4 * STEPS,
    model: nn.Module | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    **config: Any,
) -> Runner:
    """A runner with the callbacks that write files, and `callbacks`."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9))
    chosen = make(model.parameters())
    given = list(callbacks)
    if not any(callback.name == "model_checkpoint" for callback in given):
        given.append(ModelCheckpoint())
    settings = {"seed": 0, "max_epochs": 2, "log_interval": 1, "dataloader": {"batch_size": 4}}
    runner = Runner(
        settings | config,
        model=model,
        criterion=nn.MSELoss(),
        optimizer=chosen,
        scheduler=None if scheduler is None else scheduler(chosen),
        datasets={"train": Noisy(samples), "val": Noisy(8)},
        callbacks=[RunDirectory(), Logging(), RunRecord(), Results(), *given],
        default_callbacks=False,
    )
    runner.script = scores
    return runner


def failing(step: int) -> Callback:
    """Ends the training in the middle of a step, as a bug does."""

    def fail(runner: Any) -> None:
        if runner.global_step == step:
            raise RuntimeError("boom")

    return LambdaCallback(name="failing", on_step=fail)


def interrupted(step: int, callbacks: Iterable[Callback] = (), **options: Any) -> Runner:
    """A run that ended in the middle of a step."""
    runner = make_runner([*callbacks, failing(step)], **options)
    with pytest.raises(RuntimeError, match="boom"):
        runner.train()
    return runner


def trained(callbacks: Iterable[Callback] = (), **options: Any) -> Runner:
    runner = make_runner(callbacks, **options)
    runner.train()
    return runner


def weights(runner: AccelerateRunner) -> dict[str, list[Any]]:
    return {name: weight.tolist() for name, weight in runner.unwrapped_model.state_dict().items()}


def log(runner: AccelerateRunner) -> str:
    return runner.log_path.read_text()


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def names(runner: AccelerateRunner) -> set[str]:
    """The checkpoints of a run."""
    return {path.stem for path in runner.checkpoint_dir.glob("*.pth")}


def record(runner: AccelerateRunner) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((runner.dir / "run.json").read_text())
    return result
