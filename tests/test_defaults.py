"""The callbacks that every runner has, each alone removable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import danling as dl
from danling.defaults import default_callbacks

NAMES = [callback.name for callback in default_callbacks()]


def make(root: Path, **options: Any) -> dl.AccelerateRunner:
    data = TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    model = nn.Linear(3, 1)
    return dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 2, "project_root": str(root), "accelerate": {"cpu": True}},
        model=model,
        criterion=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        datasets={"train": data, "val": data},
        **options,
    )


def test_they_are_the_seven_of_the_design() -> None:
    assert sorted(NAMES) == [
        "logging",
        "model_checkpoint",
        "preemption",
        "progress_bar",
        "results",
        "run_directory",
        "run_record",
    ]


def test_two_runners_share_none() -> None:
    first, second = default_callbacks(), default_callbacks()

    assert not {id(callback) for callback in first} & {id(callback) for callback in second}


@pytest.mark.parametrize("removed", NAMES)
def test_a_runner_trains_the_same_without_any_of_them(removed: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = make(tmp_path / "whole")
    torch.manual_seed(0)
    runner = make(tmp_path / "without")
    runner.callbacks.remove(removed)

    whole.train()
    runner.train()

    assert removed not in runner.callbacks
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], weight)


def test_without_callbacks_nothing_at_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = make(Path("experiments"), default_callbacks=False)

    runner.train()
    runner.evaluate("val")
    runner.predict("val")

    assert os.listdir(tmp_path) == []
    assert len(runner.results) == 2
