"""The digest is that of the bytes that were written, in their order, whatever becomes of them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from danling.checkpoint.background import addresses
from danling.checkpoint.digest import HashedFile, StreamDigest
from danling.files import filesystem

LARGE = 1 << 20


def test_pieces_of_all_sizes_are_hashed_in_their_order():
    sizes = [0, 1, LARGE, 3, LARGE - 1, LARGE + 1, 1 << 18, (1 << 18) - 1, *[100] * 20, LARGE]
    digest, written = StreamDigest(), bytearray()

    for number, size in enumerate(sizes):
        digest.write(bytes([number]) * size, written.extend, owned=True)

    assert digest.hexdigest() == hashlib.sha256(written).hexdigest()
    digest.close()


def test_memory_that_does_not_last_may_change_when_the_write_returns():
    digest, written, memory = StreamDigest(), bytearray(), bytearray(LARGE)

    for number in range(20):
        memory[:] = bytes([number]) * LARGE
        digest.write(memoryview(memory), written.extend)

    assert digest.hexdigest() == hashlib.sha256(written).hexdigest()
    digest.close()


def test_memory_that_lasts_is_not_waited_for():
    """The write goes on while the thread has not begun: it is held up by a piece before."""
    tensor = torch.zeros(LARGE, dtype=torch.uint8)
    digest = StreamDigest(addresses({"weight": [tensor]}))
    release, written = threading.Event(), list[bytes]()
    digest.write(bytes(LARGE), lambda piece: None, owned=True)  # begins the thread
    hold(digest, release)

    digest.write(tensor.numpy().data, lambda piece: written.append(bytes(piece)))

    assert [len(piece) for piece in written] == [LARGE]
    release.set()
    assert digest.hexdigest() == hashlib.sha256(bytes(2 * LARGE)).hexdigest()
    digest.close()


def hold(digest: StreamDigest, release: threading.Event) -> None:
    """Let the thread wait before the next piece that it is given."""
    inner: Any = digest._digest

    class Held:
        def update(self, piece: Any) -> None:
            release.wait()
            inner.update(piece)

        def hexdigest(self) -> str:
            return str(inner.hexdigest())

    digest._digest = Held()  # type: ignore[assignment]  # it does what is asked for


def test_an_error_of_the_write_is_raised_when_nothing_reads_the_memory_any_more():
    digest, memory = StreamDigest(), np.zeros(LARGE, np.uint8)

    def fail(piece: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        digest.write(memory.data, fail)

    assert digest._waiting == 0
    digest.close()


def test_where_no_thread_can_be_started_it_is_hashed_at_once(monkeypatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    digest = StreamDigest()

    digest.write(bytes(LARGE), lambda piece: None)

    assert digest.hexdigest() == hashlib.sha256(bytes(LARGE)).hexdigest()
    digest.close()


def test_no_thread_stays():
    before = threading.active_count()
    digest = StreamDigest()
    digest.write(bytes(LARGE), lambda piece: None)

    digest.close()

    assert threading.active_count() == before


def test_a_small_stream_begins_no_thread():
    before = threading.active_count()
    digest = StreamDigest()

    for _ in range(100):
        digest.write(bytes(1000), lambda piece: None)

    assert threading.active_count() == before
    digest.close()


def test_addresses_are_those_that_torch_writes_from(tmp_path):
    """Else a save is right, and waits for each piece."""
    weight = torch.zeros(3 << 20, dtype=torch.uint8)
    payload = {"model": {"weight": weight, "row": weight[5:]}, "more": [(torch.ones(1 << 20),)]}
    known, seen = addresses(payload), set()

    class File:
        def write(self, data: memoryview) -> int:
            if len(data) >= 1 << 20:
                seen.add(np.frombuffer(data, np.uint8).__array_interface__["data"][0])
            return len(data)

        def flush(self) -> None:
            """Part of a file object."""

    torch.save(payload, File())  # type: ignore[arg-type]  # all that torch asks for

    assert len(seen) == 2
    assert seen <= known


def test_a_file_is_sent_to_the_disk_while_it_is_written(tmp_path, monkeypatch):
    """Each byte of a large file, in order, and none before it is written."""
    path = tmp_path / "file"
    asked: list[tuple[int, int, int]] = []

    def note(descriptor: int, start: int, length: int) -> None:
        asked.append((start, start + length, os.fstat(descriptor).st_size))

    monkeypatch.setattr(filesystem, "begin_writeback", note)
    descriptor = filesystem.open_new(path)
    with closing(HashedFile(descriptor)) as file:
        for number in range(40):
            file.write(bytes([number]) * LARGE)
        size, digest = file.finish()
    filesystem.close(descriptor)

    assert (size, digest) == (40 * LARGE, hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(asked) >= 4
    assert all(end <= there for _, end, there in asked)
    assert all(later[0] <= earlier[1] for earlier, later in pairwise(asked))
    assert size - asked[-1][1] < 9 << 20


def test_advice_that_the_system_does_not_know_is_left_out(tmp_path, monkeypatch):
    def unknown(*arguments: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", unknown, raising=False)
    descriptor = filesystem.open_new(tmp_path / "file")

    filesystem.begin_writeback(descriptor, 0, 1)

    filesystem.close(descriptor)
