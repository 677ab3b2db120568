"""What is handed over wrongly is refused where it is handed over, with the way to do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import danling as dl
from danling.errors import CheckpointError, DataError, MetricError
from danling.testing import TinyRunner

DATA = TensorDataset(torch.arange(16.0).reshape(8, 2), torch.zeros(8, 1))


def make(**parts: Any) -> dl.AccelerateRunner:
    settings = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}}
    return dl.AccelerateRunner(settings, default_callbacks=False, **parts)


# Data and metrics


@pytest.mark.parametrize("name", ["datasets", "dataloaders"])
@pytest.mark.parametrize("given", [DATA, [DATA]])
def test_one_dataset_is_no_mapping_of_splits(name: str, given: Any) -> None:
    message = (
        f'^{name} is a {type(given).__name__}, not a mapping of splits: write {name}={{"train"'
    )

    with pytest.raises(DataError, match=message):
        make(**{name: given})
    with pytest.raises(DataError, match=message):
        setattr(make(), name, given)


@pytest.mark.parametrize("given", [[len], len, nn.L1Loss()])
def test_metrics_have_names(given: Any) -> None:
    message = r'not a mapping of names: write metrics=\{"accuracy": ...\}'

    with pytest.raises(MetricError, match=message):
        make(metrics=given)
    with pytest.raises(MetricError, match=message):
        make().metrics = given


def test_the_prediction_of_an_empty_split_is_refused_as_its_evaluation_is() -> None:
    model = nn.Linear(2, 1)
    empty = TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1))
    runner = make(model=model, criterion=nn.MSELoss(), datasets={"test": empty})

    with pytest.raises(DataError, match="'test' has no batches: there is nothing to predict"):
        runner.predict("test")
    with pytest.raises(DataError, match="'test' has no batches: there is nothing to evaluate"):
        runner.evaluate("test")


# A run where a checkpoint is expected


def test_the_directory_of_a_run_means_its_latest_checkpoint() -> None:
    config = {"project_root": "runs", "max_epochs": 1}
    runner = TinyRunner(config, default_callbacks=True)
    runner.train()

    for path in (runner.dir, runner.checkpoint_dir, runner.checkpoint_dir / "latest.pth"):
        again = TinyRunner.from_checkpoint(path)
        assert again.global_step == runner.global_step == 4
        assert torch.equal(again.model.weight, runner.model.weight)


def test_a_directory_without_a_checkpoint_says_what_is_in_it(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in it"):
        TinyRunner.from_checkpoint(tmp_path)

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"name one of its files \(checkpoints/best.pth\)"):
        TinyRunner.from_checkpoint(tmp_path)
