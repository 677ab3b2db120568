"""The end of a file: every byte of the file is covered, and other readers never notice."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch

from danling.checkpoint.trailer import Sealer, Trailer, read_trailer
from danling.errors import CheckpointError

TRAILER = Trailer(("latest", "epoch-2"), 7, 120, 2, "a-run", {"val/loss": 0.5, "nan": math.nan})


def sealed(path: Path, payload: object, trailer: Trailer = TRAILER) -> Trailer:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    sealer = Sealer(descriptor)
    torch.save(payload, cast(IO[bytes], sealer))
    result = sealer.seal(trailer)
    assert sealer.size == os.fstat(descriptor).st_size
    os.close(descriptor)
    return result


def test_a_file_says_what_it_is_without_being_loaded(tmp_path: Path):
    written = sealed(tmp_path / "a.pth", {"x": 1})

    with open(tmp_path / "a.pth", "rb") as file:
        read, size = read_trailer(file)

    assert read is not None
    assert (read.names, read.serial, read.global_step, read.epoch) == (TRAILER.names, 7, 120, 2)
    assert read.run == "a-run"
    assert read.metrics["val/loss"] == 0.5
    assert math.isnan(read.metrics["nan"])
    content = (tmp_path / "a.pth").read_bytes()[:size]
    assert written.sha256 == read.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 20) + 1, 3 << 20])
def test_torch_and_zip_read_the_file_as_if_there_were_none(tmp_path: Path, size: int):
    payload: dict[str, Any] = {"a": torch.arange(size, dtype=torch.uint8), "b": [torch.ones(5)] * 3}
    path = tmp_path / "a.pth"

    sealed(path, payload)

    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["a"], payload["a"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("before", range((1 << 20) - 23, (1 << 20) + 2))
def test_the_last_record_is_at_hand_wherever_the_buffer_ends(tmp_path: Path, before: int):
    last = b"PK\x05\x06" + bytes(18)
    descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    sealer = Sealer(descriptor)
    for data in (bytes(before), last):
        sealer.write(data)

    sealer.seal(TRAILER)

    os.close(descriptor)
    comment = TRAILER.encoded()
    written = (tmp_path / "a").read_bytes()
    assert written[:before] == bytes(before)
    assert written[before : -len(comment)] == last[:-2] + len(comment).to_bytes(2, "little")


def test_equal_values_give_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        sealed(tmp_path / name, {"x": torch.arange(3)})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"P", b"PK\x05\x06", b"x" * 100_000, b"PK\x05\x06" * 40, bytes(70_000)]
)
def test_what_has_no_trailer_is_told_apart(tmp_path: Path, content: bytes):
    (tmp_path / "a").write_bytes(content)

    with open(tmp_path / "a", "rb") as file:
        assert read_trailer(file) == (None, len(content))


def test_a_trailer_that_was_changed_is_none():
    comment = TRAILER.encoded()

    for index in range(len(comment)):
        changed = bytearray(comment)
        changed[index] ^= 1
        assert Trailer.decoded(bytes(changed)) is None


def test_more_metrics_than_fit_are_an_error():
    metrics = {f"val/class-{index}": 0.123456789 for index in range(3000)}

    with pytest.raises(CheckpointError, match="3000 metrics are too many"):
        Trailer(("latest",), 1, 1, 1, None, metrics).encoded()


def test_something_else_than_an_archive_is_refused(tmp_path: Path):
    descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    sealer = Sealer(descriptor)
    sealer.write(b"not a zip archive, and longer than its last record")

    with pytest.raises(CheckpointError, match="something else than a zip archive"):
        sealer.seal(TRAILER)

    os.close(descriptor)
