"""Parts that are assigned while several processes train are the same on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import danling as dl
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Numbered, Regression, network, weights

pytestmark = pytest.mark.distributed


class Scaled(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, output: Any, target: Any) -> Any:
        return (self.scale.exp() * (output - target).square()).mean() - self.scale.sum()


def assign_optimizer(runner: Any) -> None:
    runner.criterion = Scaled()
    parameters = [*runner.unwrapped_model.parameters(), *runner.criterion.parameters()]
    runner.optimizer = torch.optim.AdamW(parameters, lr=0.01)


def assign_model(runner: Any) -> None:
    torch.manual_seed(5)
    runner.model = network()
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)


def assign_data(runner: Any) -> None:
    runner.datasets = {**runner.datasets, "train": Numbered(48)}


ASSIGN = {"optimizer": assign_optimizer, "model": assign_model, "data": assign_data}


def training(folder: Path, what: str, size: int, precision: str = "") -> None:
    class Assign(dl.Callback):
        def on_epoch_start(self, runner: Any) -> None:
            if runner.epoch == 1:
                ASSIGN[what](runner)

    config: dict[str, Any] = {"dataloader": {"batch_size": 8 // size}, "max_epochs": 3}
    if precision:
        config["accelerate"] = {"mixed_precision": precision}
    runner = Regression(folder, config, callbacks=[Assign()])
    runner.train()
    scale = (
        [float(p.detach()) for p in runner.criterion.parameters()] if what == "optimizer" else []
    )
    leave(folder, [weights(runner) + scale, runner.global_step, runner.total_steps])


@pytest.mark.parametrize("what", ASSIGN)
def test_two_processes_train_as_one_with_what_was_assigned(what: str, tmp_path: Path) -> None:
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        succeed(size, training, folder, what, size, folder=folder)

    (alone,) = results(tmp_path / "1", 1)
    first, second = results(tmp_path / "2", 2)
    assert first == second
    assert first[0] == pytest.approx(np.array(alone[0]), rel=1e-4, abs=1e-6)
    assert first[1:] == alone[1:] == ([16, 16] if what == "data" else [12, 12])


def test_a_wrapped_model_keeps_its_precision_and_its_averages(tmp_path: Path) -> None:
    succeed(2, training, tmp_path, "optimizer", 2, "bf16", folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    succeed(2, training, tmp_path, "optimizer", 2, "no", folder=tmp_path)
    assert results(tmp_path, 2)[0] != first
