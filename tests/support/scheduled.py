"""Trainings with several optimizers and schedules, that can be killed, and their plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau, StepLR

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.optimization import Schedule
from tests.support.resume_harness import Kill, digest

EPOCHS, STEPS = 4, 6

Parts = tuple[Any, Any]
"""An optimizer and a scheduler, as a runner takes them."""


class Timm:
    """Sets rates by the number of updates, or of epochs, as the schedulers of timm do."""

    def __init__(self, optimizer: Optimizer, in_epochs: bool) -> None:
        self.optimizer, self.in_epochs = optimizer, in_epochs
        self.seen: list[tuple[str, int, float | None]] = []

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.seen.append(("epoch", epoch, metric))
        self._set(epoch if self.in_epochs else None)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self.seen.append(("update", num_updates, metric))
        self._set(None if self.in_epochs else num_updates)

    def _set(self, count: int | None) -> None:
        if count is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + count)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = [tuple(row) for row in state["seen"]]


class OfEpochs:
    """Has no state and no counter: it is told the epoch."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * 0.5**epoch


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


def vectors(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 1]


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def together(model: nn.Module) -> Parts:
    optimizers = [SGD(matrices(model), lr=0.1, momentum=0.9), AdamW(vectors(model), lr=0.02)]
    return optimizers, [ExponentialLR(optimizers[0], 0.95), StepLR(optimizers[1], 2, 0.5)]


def two_schedules(model: nn.Module) -> Parts:
    optimizer = sgd(model)
    schedules = [
        Schedule(ExponentialLR(optimizer, 0.9), frequency=4),
        (StepLR(optimizer, 1, 0.5), "epoch"),
    ]
    return optimizer, schedules


def plateau(model: nn.Module) -> Parts:
    optimizer = sgd(model)
    watching = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
    return optimizer, [
        Schedule(watching, monitor="val/spread"),
        Schedule(ExponentialLR(optimizer, 0.9), "epoch", 2),
    ]


def counted(model: nn.Module) -> Parts:
    optimizer = sgd(model)
    return optimizer, Timm(optimizer, in_epochs=False)


def counted_epochs(model: nn.Module) -> Parts:
    optimizer = sgd(model)
    return optimizer, (OfEpochs(optimizer), "epoch")


def named(model: nn.Module) -> Parts:
    return sgd(model), {"name": "cosine", "warmup": 0.25, "final": 0.1}


def named_together(model: nn.Module) -> Parts:
    return together(model)[0], {"name": "linear", "interval": "epoch"}


def of_torch(model: nn.Module) -> Parts:
    return sgd(model), {"name": "OneCycleLR", "max_lr": 0.3}


CASES: dict[str, Callable[[nn.Module], Parts]] = {
    "together": together,
    "two_schedules": two_schedules,
    "plateau": plateau,
    "counted": counted,
    "named": named,
    "named_together": named_together,
    "of_torch": of_torch,
}


def make_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator))
        for _ in range(STEPS)
    ]


def spread(output: Tensor, target: Tensor) -> Tensor:
    return output.std()


def make_runner(
    root: Path, parts: Parts, model: nn.Module, kill_at: int | None = None, **config: Any
) -> dl.AccelerateRunner:
    settings = {
        "project_root": str(root),
        "seed": 0,
        "max_epochs": EPOCHS,
        "accelerate": {"cpu": True},
        "resume": "auto",
    }
    return dl.AccelerateRunner(
        settings | config,
        model=model,
        criterion=nn.functional.mse_loss,
        optimizer=parts[0],
        scheduler=parts[1],
        dataloaders={"train": make_batches(), "val": make_batches()[:2]},
        metrics={"spread": spread},
        callbacks=[ModelCheckpoint(every="1 step"), Kill(kill_at)],
    )


def train(root: Path, case: str, kill_at: int | None = None) -> None:
    """Train in this process, and leave what came of it."""
    torch.set_num_threads(1)
    model = make_model()
    runner = make_runner(root, CASES[case](model), model, kill_at)
    rates: list[Any] = []
    runner.callbacks.append(Rates(rates))
    runner.train()
    report = runner.resume_report
    outcome = {
        "weights": digest(runner.unwrapped_model.state_dict()),
        "optimizers": [digest(o.state_dict()) for o in runner.optimizers],
        "schedulers": {
            name: digest(part.state_dict()) for name, part in runner.optimization.schedulers.items()
        },
        "results": runner.results,
        "rates": rates[-1],
        "report": None if report is None else [report["exact"], report["reasons"]],
    }
    (root / "outcome.json").write_text(json.dumps(outcome))


class Rates(dl.Callback):
    """Writes down the learning rates after each step."""

    def __init__(self, rates: list[Any]) -> None:
        self.rates = rates

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.rates.append([g["lr"] for o in runner.optimizers for g in o.param_groups])


def make_warmup(optimizer: Optimizer, total: int) -> LambdaLR:
    """A cosine after a warm-up as Transformers makes it, with a floor."""
    from math import cos, pi

    warmup = round(total * 0.25)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.1 + 0.9 * (0.5 * (1.0 + cos(pi * ((step - warmup) / (total - warmup)))))

    return LambdaLR(optimizer, factor)
