"""The SHA-256 of what is written, computed on a thread of its own while it is written.

SHA-256 stays: what it tells apart must not be forged, and processors have instructions for it. On
one thread it would follow the CRC-32 of torch and the write; on its own it runs beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from danling.files import filesystem

__all__ = ["HashedFile", "StreamDigest"]


Piece = bytes | bytearray | memoryview

_SMALL = 1 << 18  # bytes that are hashed at once: handing them over would take as long
_BUFFER = 1 << 20  # bytes gathered before a write: torch.save writes eight times per tensor
_WRITEBACK = 1 << 23  # bytes that are sent to the disk together
_CACHED = 1 << 24  # bytes of a file that may be in memory on their way
_AHEAD = 4  # pieces that may wait for the thread: more would be a second copy of small tensors


class StreamDigest:
    """The digest of a stream of pieces, each of which is hashed while it is written.

    Nothing is copied: a piece is in memory that lasts, or is hashed when `write` returns. Where no
    thread can be started, as when Python exits, it is hashed at once.

    Args:
        lasting: The addresses at which memory begins that stays as it is until `hexdigest`.

    Example:
        >>> parts = []
        >>> digest = StreamDigest()
        >>> digest.write(b"danling", parts.append)
        >>> digest.hexdigest() == hashlib.sha256(parts[0]).hexdigest()
        True
    """

    def __init__(self, lasting: Collection[int] = ()) -> None:
        self._lasting = lasting
        self._digest = hashlib.sha256()
        self._thread: Thread | None = None
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._waiting = 0

    def write(self, piece: Piece, write: Callable[[Piece], object], *, owned: bool = False) -> None:
        """Pass a piece to `write`, and hash it meanwhile.

        Args:
            piece: The bytes that come after all earlier pieces.
            write: Writes it; what it raises is raised.
            owned: Whether nobody else has the piece, so that it lasts.
        """
        self._begin(piece)
        try:
            write(piece)
        finally:
            if self._waiting and not (owned or _address(piece) in self._lasting):
                self._wait(0)

    def hexdigest(self) -> str:
        """The digest of all pieces."""
        self._wait(0)
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread, after which no memory is read any more."""
        self._wait(0)
        if self._thread is not None:
            self._given.put(None)
            self._thread.join()
            self._thread = None

    def _begin(self, piece: Piece) -> None:
        if not self._waiting and (len(piece) < _SMALL or not self._has_thread()):
            self._digest.update(piece)
            return
        self._wait(_AHEAD - 1)
        self._waiting += 1
        self._given.put(piece)

    def _wait(self, most: int) -> None:
        """Return once at most so many pieces wait for the thread."""
        while self._waiting > most:
            self._done.get()
            self._waiting -= 1

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = Thread(target=self._run, name="danling-digest", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # Python exits, or the system has no more threads
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (piece := self._given.get()) is not None:
            self._digest.update(piece)
            del piece
            self._done.put(None)


class HashedFile:
    """File object that hashes what it writes, and sends it to the disk while more is written.

    Args:
        descriptor: The open file.
        lasting: The addresses of tensors that stay as they are until `close`.

    Attributes:
        error: The first error of the system; torch hides it behind one of its own.
        size: The number of bytes written so far.
    """

    _kept = 0  # bytes at the end that are not written before `finish`

    def __init__(self, descriptor: int, lasting: Collection[int] = ()) -> None:
        self.error: OSError | None = None
        self.size = 0
        self._sent = 0  # bytes that are on their way to the disk
        self._descriptor = descriptor
        self._digest = StreamDigest(lasting)
        self._pending = bytearray()

    def write(self, data: Piece) -> int:
        """Write what is large, and gather what is small."""
        view = memoryview(data).cast("B")
        if len(self._pending) + len(view) > _BUFFER and len(view) >= self._kept:
            rest = len(view) - self._kept
            self._emit(self._pending, owned=True)
            self._emit(view[:rest])
            self._pending = bytearray(view[rest:])
        else:
            self._pending += view
        return len(view)

    def tell(self) -> int:
        """The number of bytes that were given."""
        return self.size + len(self._pending)

    def flush(self) -> None:
        """Part of a file object; `finish` writes what is left."""

    def finish(self) -> tuple[int, str]:
        """Write what is left; returns the size of the file and its SHA-256."""
        self._emit(self._pending, owned=True)
        self._pending = bytearray()
        return self.size, self._digest.hexdigest()

    def close(self) -> None:
        """End the thread that hashes; the descriptor stays open."""
        self._digest.close()

    def _emit(self, data: Piece, *, owned: bool = False) -> None:
        try:
            self._digest.write(data, self._write, owned=owned)
        except OSError as error:
            self.error = self.error or error
            raise
        self.size += len(data)

    def _write(self, data: Piece) -> None:
        filesystem.write(self._descriptor, data)
        written = self.size + len(data)
        if written - self._sent >= _WRITEBACK:
            # what lies further back is on the disk by now, and its memory is used again
            start = max(0, self._sent - _CACHED)
            filesystem.begin_writeback(self._descriptor, start, written - start)
            self._sent = written


def _address(piece: Piece) -> int:
    address: int = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
    return address
