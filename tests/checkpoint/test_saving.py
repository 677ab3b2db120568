"""A save is of its own step, and of no other, on every process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danling.checkpoint.background import Snapshot
from danling.checkpoint.reading import read_checkpoint
from danling.checkpoint.saving import Save, Saver
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


def last_of(saver: Saver) -> Snapshot:
    assert saver._last is not None
    return saver._last


def test_saves_in_a_thread_take_over_the_memory_of_the_last_and_are_each_of_their_step(
    tmp_path: Path,
):
    store, saver = CheckpointStore(tmp_path / "checkpoints"), Saver(World())
    weight = torch.zeros(3 << 20)
    saver.open(asynchronous=True)
    places = []

    for number in range(1, 4):
        weight.fill_(number)
        names = (f"epoch-{number}",)
        saver.save(Save(names, {"model": {"weight": weight}}, None, number, number, {}), store)
        places.append({memory.data_ptr() for memory, _ in last_of(saver).memory})
    saver.close()

    assert places[0] == places[1] == places[2]
    assert saver._last is None
    for number in range(1, 4):
        read = read_checkpoint(tmp_path / "checkpoints" / f"epoch-{number}.pth")
        assert torch.equal(read["model"]["weight"], torch.full((3 << 20,), float(number)))
