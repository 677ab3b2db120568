"""How one process reads; that several get the same is in tests/distributed/test_failures.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from danling.checkpoint import reading
from danling.checkpoint.reading import digest_of, read_together
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError


def test_one_process_reads_what_it_chooses(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.commit({"model": {}}, ["latest"], global_step=3, epoch=1)

    checkpoint, path = read_together(World(), store.load)

    assert (path, checkpoint["model"]) == (tmp_path / "latest.pth", {})


def test_an_error_of_the_choice_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_together(World(), CheckpointStore(tmp_path).load)


def test_the_digest_is_of_the_content_and_not_of_the_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    first = store.commit({"model": {}}, ["epoch-1"], global_step=3, epoch=1)
    second = store.commit({"model": {}}, ["epoch-2"], global_step=4, epoch=2)
    third = store.commit({"model": {"a": 1}}, ["epoch-3"], global_step=4, epoch=2)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"something else")

    assert digest_of(first) == digest_of(second)
    assert digest_of(first) != digest_of(third)
    assert digest_of(foreign) is None


def test_what_the_main_process_has_checked_is_not_hashed_again(tmp_path: Path, monkeypatch) -> None:
    path = CheckpointStore(tmp_path).commit({"model": {}}, ["latest"], global_step=3, epoch=1)
    with reading._opened(path) as file:
        seen = reading._seen(file)
    hashed = []
    monkeypatch.setattr(reading, "_check_digest", lambda *arguments: hashed.append(arguments))

    assert reading._read(path, checked=seen)["model"] == {}
    assert hashed == []

    for other in (None, ("elsewhere", *seen[1:]), (*seen[:4], seen[4] + 1)):
        reading._read(path, checked=other)
    assert len(hashed) == 3
