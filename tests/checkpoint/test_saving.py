"""A save is of its own step, and of no other, on every process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danling.checkpoint.reading import read_checkpoint
from danling.checkpoint.saving import Save
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError


def save_of(contents: dict[str, object]) -> Save:
    return Save(("latest", "epoch-1"), contents, None, 40, 1, {"val/loss": 0.5})


def test_a_save_is_committed_under_its_names_with_its_numbers(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")

    path = save_of({"model": {"weight": torch.ones(2)}}).commit(World(), store)

    entries = store.candidates()
    assert path.name == "latest.pth"
    assert [entry.name for entry in entries] == ["latest", "epoch-1"]
    assert (entries[0].global_step, entries[0].epoch) == (40, 1)
    assert entries[0].metrics == {"val/loss": 0.5}


def test_a_copy_stays_what_it_was_while_training_goes_on(tmp_path: Path):
    weight = torch.ones(2)
    copied = save_of({"model": {"weight": weight}}).copied(World())

    weight.fill_(7)
    path = copied.commit(World(), CheckpointStore(tmp_path / "checkpoints"))

    assert read_checkpoint(path)["model"]["weight"].tolist() == [1, 1]


def test_what_cannot_be_saved_is_an_error_when_it_is_copied():
    with pytest.raises(CheckpointError, match="callbacks"):
        save_of({"callbacks": {"mine": {"now": print}}}).copied(World())
