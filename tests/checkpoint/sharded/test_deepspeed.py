"""The files of a DeepSpeed engine, as far as they need no DeepSpeed; else in distributed/."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.sharded.deepspeed import EngineFiles, described, places, weights_in
from danling.distributed.world import World
from danling.errors import CheckpointError


def engine_writing(directory: Path, *names: str) -> SimpleNamespace:
    """Writes files of these names, in place of an engine."""
    engine = SimpleNamespace(checkpoint_engine=SimpleNamespace(name="own"))

    def save(folder: str, **options: object) -> None:
        assert (folder, engine.checkpoint_engine.name) == (str(directory), "own")
        for name in names:
            engine.checkpoint_engine.save({"name": name}, str(directory / name))
        engine.passed_barrier = True

    engine.save_checkpoint = save
    return engine


def test_the_files_of_this_process_are_named(tmp_path: Path) -> None:
    engine = engine_writing(tmp_path, "one.pt", "two.pt")
    before = engine.checkpoint_engine

    names = EngineFiles(engine).write(tmp_path, World())

    assert names == ["one.pt", "two.pt"] == sorted(path.name for path in tmp_path.iterdir())
    assert torch.load(tmp_path / "two.pt", weights_only=True) == {"name": "two.pt"}
    assert engine.checkpoint_engine is before


def test_a_failure_waits_for_the_barriers(tmp_path: Path) -> None:
    """An engine that raises leaves the other processes waiting for this one."""
    engine = engine_writing(tmp_path, "one.pt", "gone/two.pt", "three.pt")

    with pytest.raises(CheckpointError, match="No such file") as caught:
        EngineFiles(engine).write(tmp_path, World())

    assert engine.passed_barrier
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt"]


def test_a_plain_model_is_described_by_itself() -> None:
    model = nn.BatchNorm1d(2)

    state = dict(described(model))

    torch.testing.assert_close(state, dict(model.state_dict()))
    assert places(model)["weight"] == Placeholder(torch.Size([2]), torch.float32)


def test_weights_that_an_engine_has_are_described_as_the_whole() -> None:
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    model.weight.data = torch.empty(0, dtype=torch.bfloat16)
    model.weight.ds_shape = torch.Size([2, 3])  # type: ignore[attr-defined]  # a third stage
    model.bias.requires_grad_(False)._hp_mapping = None  # type: ignore[attr-defined]  # the others

    state = described(model)

    assert (state["weight"].shape, state["weight"].dtype) == ((2, 3), torch.float32)
    assert (state["bias"].shape, state["bias"].dtype) == ((2,), torch.bfloat16)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="it is installed")
def test_weights_of_an_engine_need_deepspeed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which is not installed"):
        weights_in(tmp_path)
