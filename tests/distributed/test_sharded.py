"""Weights of which each process holds a part, on CPUs: torch can, though Accelerate does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from danling.callbacks import ModelCheckpoint
from danling.validation import read_checkpoint
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression, network

pytestmark = pytest.mark.distributed


class ShardedByUser(Accelerator):  # type: ignore[misc]  # Accelerate has no types
    """Takes the model as it is: Accelerate shards on GPUs only."""

    def prepare_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.num_processes == 1:
            return super().prepare_model(model, *args, **kwargs)
        self._models.append(model)
        return model


def sharded_network() -> nn.Module:
    model = network()
    size = int(os.environ["WORLD_SIZE"])
    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for layer in (model[0], model[2]):  # type: ignore[index]  # it is a Sequential
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


class Sharded(Regression):
    def make_accelerator(self) -> Accelerator:
        return ShardedByUser(cpu=True)


def training(folder: Path, batch_size: int) -> None:
    config = {
        "dataloader": {"batch_size": batch_size},
        "max_grad_norm": 0.5,
    }
    runner = Sharded(
        folder,
        config,
        samples={"train": 32, "val": 13, "small": 1},
        model=sharded_network,
        callbacks=[ModelCheckpoint(every="2 steps")],
        default_callbacks=True,
    )
    runner.train()
    predictions = runner.predict("val").flatten().tolist()
    leave(folder, [runner.results, predictions, runner.global_step])


def test_a_sharded_run_is_that_of_one_process(tmp_path: Path) -> None:
    """13 and 1 samples: the ranks have unequally many batches, and one has none at all."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    alone.mkdir()
    several.mkdir()
    succeed(1, training, alone, 8, folder=alone)
    ((expected, outputs, _),) = results(alone, 1)

    succeed(2, training, several, 4, folder=several)

    for found, predictions, steps in results(several, 2):
        assert steps == 8
        assert predictions == pytest.approx(outputs, rel=1e-4, abs=1e-6)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine["train"] == pytest.approx(theirs["train"], rel=1e-4)
            assert mine["val"] == pytest.approx(theirs["val"], rel=1e-4)
            assert mine["small"] == pytest.approx(theirs["small"], rel=1e-4)
    (path,) = several.glob("experiments/*/checkpoints/latest.pth")
    (other,) = alone.glob("experiments/*/checkpoints/latest.pth")
    saved, whole = read_checkpoint(path), read_checkpoint(other)
    assert saved["model"].keys() == whole["model"].keys()
    for name, tensor in whole["model"].items():
        torch.testing.assert_close(saved["model"][name], tensor, rtol=1e-4, atol=1e-6)


def loading(folder: Path, path: str) -> None:
    runner = Sharded(folder, samples={"train": 32, "val": 13}, model=sharded_network)
    runner.load_checkpoint(path)
    momentum = runner.optimizer.state_dict()["state"]
    leave(folder, [runner.global_step, runner.evaluate("val")["loss"], len(momentum)])


def test_a_sharded_checkpoint_is_loaded_into_a_sharded_model(tmp_path: Path) -> None:
    succeed(2, training, tmp_path, 4, folder=tmp_path)
    (found, _, _), _ = results(tmp_path, 2)
    (path,) = tmp_path.glob("experiments/*/checkpoints/latest.pth")

    succeed(2, loading, tmp_path, str(path), folder=tmp_path)

    for steps, loss, momenta in results(tmp_path, 2):
        assert (steps, momenta) == (8, 4)
        assert loss == pytest.approx(found[-1]["val"]["loss"], rel=1e-6)
