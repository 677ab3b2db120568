"""Parts of one process: there are none; those of several are in tests/distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import danling as dl
from danling.checkpoint.sharded.shards import directories
from danling.checkpoint.sharded.state import write_shards
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError
from danling.files.failpoints import set_failpoints


def test_a_model_of_one_process_is_all_head(tmp_path: Path):
    runner = dl.AccelerateRunner(model=nn.Linear(2, 1), default_callbacks=False)
    runner.prepare()
    checkpoint = runner.state_dict()

    state = runner.optimization.model_state
    head, parts = state.split(checkpoint)

    assert head is checkpoint
    assert parts is None
    assert state.read(checkpoint, tmp_path / "latest.pth", World(), {}) is checkpoint


class OneFile:
    """A part of plain bytes."""

    can_wait = True

    def copied(self) -> OneFile:
        return self

    def write(self, directory: Path, world: World) -> list[str]:
        (directory / "part").write_bytes(b"\0" * 7)
        return ["part"]


def test_parts_are_recorded_with_their_sizes(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")

    record = write_shards(World(), store, 3, OneFile())

    assert record is not None
    assert directories(store.directory) == {record["directory"]}
    assert record["files"]["part"][0] == 7


@pytest.mark.parametrize("point", ["shards.after_write", "shards.after_seal"])
def test_parts_that_cannot_be_written_leave_nothing(tmp_path: Path, point: str):
    store = CheckpointStore(tmp_path / "checkpoints")
    set_failpoints(f"{point}=raise:28")
    try:
        with pytest.raises(CheckpointError) as caught:
            write_shards(World(), store, 3, OneFile())
    finally:
        set_failpoints("")

    assert caught.value.errno == 28
    assert directories(store.directory) == set()
