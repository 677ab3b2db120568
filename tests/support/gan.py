"""A generator and a critic with a gradient penalty, in a runner that can be killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import TensorDataset

import danling as dl
from danling.callbacks import ModelCheckpoint
from tests.support.resume_harness import Kill, digest

SAMPLES, BATCH, EPOCHS, NOISE = 48, 8, 2, 4


def make_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(NOISE, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    return {"generator": generator, "critic": critic}


def make_optimizers(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
    return {
        "generator": torch.optim.Adam(models["generator"].parameters(), lr=1e-2, betas=(0.0, 0.9)),
        "critic": torch.optim.Adam(models["critic"].parameters(), lr=2e-2, betas=(0.0, 0.9)),
    }


def make_schedulers(optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
    return {"critic": ExponentialLR(optimizers["critic"], 0.98)}


def make_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(SAMPLES, 2, generator=generator) * 0.3 + 1.0)


def critic_loss(models: Any, real: Tensor) -> Tensor:
    """The loss of a Wasserstein critic with a gradient penalty: two backward passes in a step."""
    fake = models["generator"](torch.randn(len(real), NOISE)).detach()
    share = torch.rand(len(real), 1)
    mixed = (share * real + (1 - share) * fake).requires_grad_()
    (slopes,) = torch.autograd.grad(models["critic"](mixed).sum(), mixed, create_graph=True)
    penalty = (slopes.norm(dim=1) - 1).square().mean()
    return models["critic"](fake).mean() - models["critic"](real).mean() + 10 * penalty


def generator_loss(models: Any, real: Tensor) -> Tensor:
    return -models["critic"](models["generator"](torch.randn(len(real), NOISE))).mean()


class Adversaries(dl.AccelerateRunner):
    """Two steps for each batch, each of one optimizer on its own loss."""

    def train(self) -> None:
        with self:
            for _ in self.epochs():
                for (real,) in self.batches():
                    self.step(critic_loss(self.model, real), "critic")
                    self.step(generator_loss(self.model, real), "generator")
                self.evaluate("val")

    def evaluate_step(self, batch: Any) -> dict[str, Tensor]:
        (real,) = batch
        fake = self.model["generator"](torch.zeros(len(real), NOISE))
        return {"loss": (fake.mean(0) - real.mean(0)).square().sum()}


def make_runner(root: Path, kill_at: int | None = None, **config: Any) -> Adversaries:
    models = make_models()
    optimizers = make_optimizers(models)
    settings = {
        "project_root": str(root),
        "seed": 1,
        "max_epochs": EPOCHS,
        "max_grad_norm": 1.0,
        "accelerate": {"cpu": True},
        "dataloader": {"batch_size": BATCH},
        "resume": "auto",
    }
    return Adversaries(
        settings | config,
        model=models,
        optimizer=optimizers,
        scheduler=make_schedulers(optimizers),
        datasets={"train": make_data(), "val": make_data()},
        callbacks=[ModelCheckpoint(every="1 step"), Kill(kill_at)],
    )


def train(root: Path, kill_at: int | None = None, config: dict[str, Any] | None = None) -> None:
    """Train, and leave what came of it in `outcome-RANK.json`."""
    torch.set_num_threads(1)
    runner = make_runner(root, kill_at, **(config or {}))
    runner.train()
    outcome = {
        "weights": digest(runner.unwrapped_model.state_dict()),
        "optimizers": {name: digest(o.state_dict()) for name, o in runner.optimizer.items()},
        "results": runner.results,
        "steps": runner.global_step,
        "exact": None if runner.resume_report is None else runner.resume_report["exact"],
    }
    (root / f"outcome-{runner.rank}.json").write_text(json.dumps(outcome))


def outcome(root: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"outcome-{rank}.json").read_text())
    return found
