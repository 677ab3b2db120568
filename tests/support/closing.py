"""Optimizers that evaluate the model themselves, in trainings that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD

import danling as dl
from danling.callbacks import ModelCheckpoint
from tests.support.resume_harness import Kill, digest

EPOCHS, BATCHES = 3, 8
Closure = Callable[[], Tensor]


class SAM(SGD):
    """Steps with the gradients of the worst weights nearby (Foret and others, 2021)."""

    radius = 0.05

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        evaluate = torch.enable_grad()(closure)
        loss = evaluate()
        moved = list(self._climb())
        evaluate()
        for parameter, way in moved:
            parameter.sub_(way)
        super().step()
        return loss

    def _climb(self) -> Iterator[tuple[Tensor, Tensor]]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        for parameter in parameters:
            way = parameter.grad * (self.radius / (norm + 1e-12))
            parameter.add_(way)
            yield parameter, way


class Climbed(SAM):
    """Wants the gradients before it evaluates, as a widespread implementation does."""

    needs_closure = "gradients"

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:
        assert closure is not None
        moved = list(self._climb())
        loss = torch.enable_grad()(closure)()
        for parameter, way in moved:
            parameter.sub_(way)
        SGD.step(self)
        return loss


class Armijo(SGD):
    """Halves its step until the loss has fallen enough; it looks at the loss alone."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        gradients = [p.grad.clone() for p in parameters]
        slope = sum(float(g.square().sum()) for g in gradients)
        rate = 1.0
        while True:
            for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
                parameter.copy_(old - rate * gradient)
            if rate < 1e-3 or float(closure()) <= float(loss) - 0.1 * rate * slope:
                return loss
            rate /= 2


Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "lbfgs": lambda m: LBFGS(m.parameters(), lr=0.5, max_iter=4, history_size=5),
    "wolfe": lambda m: LBFGS(m.parameters(), max_iter=4, line_search_fn="strong_wolfe"),
    "sam": lambda m: SAM(m.parameters(), lr=0.1, momentum=0.9),
    "climbed": lambda m: Climbed(m.parameters(), lr=0.1, momentum=0.9),
    "armijo": lambda m: Armijo(m.parameters(), lr=0.1),
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def make_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES, 8, 4, generator=generator)
    return [(each, each.sum(1, keepdim=True).sin()) for each in inputs]


def make_runner(
    root: Path, case: str, kill_at: int | None = None, **config: Any
) -> dl.AccelerateRunner:
    model = make_model()
    optimizer = OPTIMIZERS[case](model)
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
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97),
        dataloaders={"train": make_batches(), "val": make_batches()[:2]},
        callbacks=[ModelCheckpoint(every="1 step"), Kill(kill_at)],
    )


def train(root: Path, case: str, kill_at: int | None, config: dict[str, Any]) -> None:
    """Train in this process, and leave what came of it in `outcome-RANK.json`."""
    torch.set_num_threads(1)
    runner = make_runner(root, case, kill_at, **config)
    runner.train()
    report = runner.resume_report
    outcome = {
        "weights": [p.tolist() for p in runner.unwrapped_model.parameters()],
        "digest": digest(runner.unwrapped_model.state_dict()),
        "optimizer": digest(runner.optimizer.state_dict()),
        "results": runner.results,
        "steps": runner.global_step,
        "report": None if report is None else [report["exact"], report["reasons"]],
    }
    (root / f"outcome-{runner.rank}.json").write_text(json.dumps(outcome))


def outcome(root: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"outcome-{rank}.json").read_text())
    return found
