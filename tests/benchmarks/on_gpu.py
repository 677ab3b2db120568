"""Step times on a GPU, by hand and with DanLing: a small ResNet and a small transformer.

    python -m tests.benchmarks.on_gpu [--compile] [--device cpu] [--steps 200] [--rounds 5]

Both train in bfloat16 from pinned memory. `--device cpu` only shows that the program runs. Printed
are absolute times with the name of the device, and the ratio of rounds that ran in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.callbacks.run_directory import RunDirectory
from tests.benchmarks.race import silence
from tests.benchmarks.work import Marks

CLASSES, BATCH = 10, 64


class Block(nn.Module):
    """Two convolutions and a way around them (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(layer for _ in range(2) for layer in (conv(width, width), nn.BatchNorm2d(width)))
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(input + self.layers(input))


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def make_resnet() -> nn.Module:
    blocks = [Block(64) for _ in range(4)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    return nn.Sequential(conv(3, 64), *blocks, *head)


def make_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(128 * 256, CLASSES))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet": (make_resnet, (3, 32, 32)),
    "transformer": (make_transformer, (128, 256)),
}


class Run:
    """One model and its data, trained in different ways."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.make_model, shape = MODELS[name]
        self.device, self.compile = torch.device(arguments.device), arguments.compile
        samples = arguments.steps * BATCH
        targets = torch.randint(0, CLASSES, (samples,))
        self.data = TensorDataset(torch.randn(samples, *shape), targets)
        self.pinned = self.device.type == "cuda"
        self.epochs = 4  # the first and the last are not counted

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def by_hand(self, *, blocking: bool = False) -> list[float]:
        torch.manual_seed(0)
        model, marks = self.make_model().to(self.device), Marks()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        step = torch.compile(model) if self.compile else model
        loader = DataLoader(self.data, BATCH, shuffle=True, pin_memory=self.pinned)
        for _ in range(self.epochs):
            self.synchronise()
            marks.add()
            for input, target in loader:
                input = input.to(self.device, non_blocking=not blocking)
                target = target.to(self.device, non_blocking=not blocking)
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss = nn.functional.cross_entropy(step(input), target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return marks.epochs

    def with_danling(self, *, asynchronous: bool | None = None) -> list[float]:
        """With `asynchronous` there is a checkpoint of every epoch too."""
        marks, synchronise = Marks(), self.synchronise

        class Timer(dl.Callback):
            priority = dl.Priority.HIGHEST

            def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
                synchronise()
                marks.add()

        callbacks: list[dl.Callback] = [Timer()]
        if asynchronous is not None:
            callbacks += [RunDirectory(), ModelCheckpoint(asynchronous=asynchronous)]
        torch.manual_seed(0)
        model = self.make_model()
        engine: dict[str, Any] = {"mixed_precision": "bf16", "cpu": self.device.type == "cpu"}
        if self.compile:
            engine["dynamo_backend"] = "inductor"
        with tempfile.TemporaryDirectory() as folder, silence():
            dl.AccelerateRunner(
                {
                    "seed": 0,
                    "max_epochs": self.epochs,
                    "project_root": str(Path(folder)),
                    "accelerate": engine,
                    "dataloader": {"batch_size": BATCH, "pin_memory": self.pinned},
                },
                model=model,
                criterion=nn.functional.cross_entropy,
                optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
                datasets={"train": self.data},
                default_callbacks=False,
                callbacks=callbacks,
            ).train()
        return marks.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    print(torch.cuda.get_device_name() if on_gpu else "the CPU: these times mean nothing")
    print("| | ms per step | times by hand |\n| --- | --- | --- |")
    for name in MODELS:
        run = Run(name, arguments)
        ways: dict[str, Callable[[], list[float]]] = {
            "by hand": run.by_hand,
            "by hand, copies that wait": lambda run=run: run.by_hand(blocking=True),  # type: ignore[misc]
            "DanLing": run.with_danling,
            "DanLing, saving": lambda run=run: run.with_danling(asynchronous=False),  # type: ignore[misc]
            "DanLing, saving in the background": lambda run=run: run.with_danling(  # type: ignore[misc]
                asynchronous=True
            ),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, train in ways.items():
                start = time.perf_counter()
                epochs = train()
                assert epochs, f"{way} took {time.perf_counter() - start:.1f} s without an epoch"
                times[way].append(min(epochs) / arguments.steps * 1e3)
        for way, found in times.items():
            pairs = zip(found, times["by hand"], strict=True)
            ratio = statistics.median(ours / hand for ours, hand in pairs)
            print(f"| {name}, {way} | {statistics.median(found):.3f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
