"""What scored best is what is saved: `best.pth` gives the best score back, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from danling.callback import Callback
from danling.callbacks import (
    EMAWeightAveraging,
    ScheduleFree,
    StochasticWeightAveraging,
    WeightAveraging,
)
from danling.testing import TinyRunner

KINDS: dict[str, Callable[[random.Random], Callback | None]] = {
    "plain": lambda chance: None,
    "ema": lambda chance: EMAWeightAveraging(
        chance.choice([0.5, 0.9, 0.99]), chance.choice(["1 step", "3 steps", "1 epoch"])
    ),
    "swa": lambda chance: StochasticWeightAveraging(
        chance.choice([0.01, 0.2]), chance.randrange(3), annealing_epochs=chance.randrange(4)
    ),
    "averaging": lambda chance: WeightAveraging("2 steps", use_buffers=chance.random() < 0.5),
    "schedule_free": lambda chance: ScheduleFree(),
}


class Random(TinyRunner):
    """A training with a random model, optimizer and monitor; the callback is not among its own."""

    def __init__(self, config: Any = None, *, chance: random.Random, free: bool, **parts: Any):
        settings = {
            "seed": chance.randrange(100),
            "max_epochs": chance.randrange(2, 7),
            "dataloader": {"batch_size": chance.choice([2, 4, 6])},
            "evaluate_every": chance.choice(["1 epoch", "3 steps"]),
        }
        if chance.random() < 0.3:
            settings |= {"monitor": "val/accuracy", "monitor_mode": "max"}
        super().__init__(
            settings | dict(config or {}), samples=2 * chance.randrange(4, 15), **parts
        )
        width = chance.choice([3, 8])
        layers: list[nn.Module] = [nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)]
        if chance.random() < 0.4:
            layers.insert(1, nn.BatchNorm1d(width))
        self.model = nn.Sequential(*layers)
        kinds: list[Any] = [torch.optim.SGD, torch.optim.AdamW]
        if free:
            schedulefree: Any = pytest.importorskip("schedulefree")
            kinds = [schedulefree.SGDScheduleFree, schedulefree.AdamWScheduleFree]
        rate = chance.choice([0.05, 0.5])  # one that overshoots, so that the best is not the last
        self.optimizer = chance.choice(kinds)(self.model.parameters(), lr=rate)
        self.dataloaders = {}


SEEDS = [pytest.param(s, marks=() if s < 3 else pytest.mark.exhaustive) for s in range(20)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_checkpoint_gives_the_best_score_back(tmp_path: Path, seed: int, kind: str):
    callback = KINDS[kind](random.Random(f"{kind}-{seed}"))
    runner = Random(
        {"project_root": str(tmp_path)},
        chance=random.Random(seed),
        free=kind == "schedule_free",
        callbacks=[] if callback is None else [callback],
        default_callbacks=True,
    )
    runner.train()

    again = Random.from_checkpoint(
        runner.checkpoint_dir / "best.pth",
        chance=random.Random(seed),
        free=kind == "schedule_free",
        default_callbacks=False,
    )
    name = runner.monitor.removeprefix("val/")
    assert again.evaluate("val")[name] == runner.best_score
