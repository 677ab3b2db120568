"""Runners that several processes train, on data in which every sample knows its number."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import danling as dl

ON_CPU = {"cpu": True}


class Numbered(torch.utils.data.Dataset):
    """Samples (input, target) of random values; the first input is the sample's number."""

    deterministic = True

    def __init__(self, samples: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(samples, 4, generator=generator)
        self.inputs[:, 0] = torch.arange(samples) / 100
        self.targets = torch.randn(samples, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def numbers(batch: tuple[Tensor, Tensor]) -> list[int]:
    """The numbers of the samples of a batch."""
    return [round(value) for value in (batch[0][:, 0] * 100).tolist()]


class Regression(dl.AccelerateRunner):
    """A small network on `Numbered`, that makes no difference between ranks."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | None = None,
        *,
        samples: Mapping[str, int] | None = None,
        model: Callable[[], nn.Module] | None = None,
        callbacks: Iterable[dl.Callback] = (),
        default_callbacks: bool = False,
        **parts: Any,
    ) -> None:
        settings = {
            "project_root": str(folder / "experiments"),
            "seed": 0,
            "max_epochs": 2,
            "log_interval": 1,
            "dataloader": {"batch_size": 4},
            **(config or {}),
        }
        settings["accelerate"] = {**ON_CPU, **settings.get("accelerate", {})}
        super().__init__(
            settings, callbacks=callbacks, default_callbacks=default_callbacks, **parts
        )
        dl.seed_everything(self.config)
        sizes = {"train": 32, "val": 13, **(samples or {})}
        self.datasets = self.datasets or {split: Numbered(size) for split, size in sizes.items()}
        self.criterion = nn.functional.mse_loss
        self.model = (model or network)()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)


def network() -> nn.Module:
    """Without anything random in it."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def normalised_network() -> nn.Module:
    """With statistics that each process gathers from its own batches."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def weights(runner: dl.AccelerateRunner) -> list[float]:
    """All parameters and buffers, as numbers."""
    state = runner.unwrapped_model.state_dict()
    return [value for tensor in state.values() for value in tensor.double().flatten().tolist()]


class At(dl.Callback):
    """Do something on one rank, in one hook, at one step; late, and so after whoever saves."""

    priority = 1000

    def __init__(
        self, hook: str, action: Callable[..., None], *, rank: int = 1, step: int = 3
    ) -> None:
        self.action, self.rank, self.step = action, rank, step
        setattr(self, hook, self._act)

    def _act(self, runner: dl.AccelerateRunner, *args: Any) -> None:
        if runner.rank == self.rank and runner.global_step >= self.step:
            self.action(runner)


def fail(runner: dl.AccelerateRunner) -> None:
    """Raise an error of the user's."""
    raise ZeroDivisionError(f"on purpose, on rank {runner.rank}")


def die(runner: dl.AccelerateRunner) -> None:
    """End as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(runner: dl.AccelerateRunner) -> None:
    """Stop as by `kill -STOP`."""
    os.kill(os.getpid(), signal.SIGSTOP)
