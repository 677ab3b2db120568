"""Saves in the background, one at a time.

The training thread takes a snapshot and goes on; the write, the commit and the rotation run in a
thread. What they return, and what they raise, comes back on the training thread when it asks:
callbacks are not thread-safe, and an error of a save belongs to the next step, not to the next
save. The thread is not a daemon, so that a normal exit of Python waits for it: a daemon thread
loses the checkpoint on an exception, on `sys.exit` and on Ctrl-C.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from typing import Any, Generic, TypeVar

import torch

from danling.checkpoint.encoding import encode
from danling.errors import CheckpointError

__all__ = ["AsyncWriter", "Snapshot", "addresses", "in_memory", "on_host", "snapshot"]


T = TypeVar("T")
_Memory = tuple[torch.UntypedStorage, bool]

_PIECE = 4 << 20  # bytes that one thread copies at once
_COPIERS = 4  # threads that copy: memory is no faster with more
_NOTICEABLE = 1.0  # seconds of waiting that are worth a line in the log
_logger = logging.getLogger(__name__)


class AsyncWriter(Generic[T]):
    """Runs one job at a time in a thread of its own; the next one waits for it.

    In a process that was forked from the one that submitted a job, nothing is under way and nothing
    was completed: the job goes on in the parent, and only there.

    Args:
        timeout: Seconds for which `submit` and `drain` wait for the job under way; None: for ever.

    Example:
        >>> writer = AsyncWriter[str]()
        >>> writer.submit(lambda: "epoch-1.pth")
        >>> writer.drain()
        >>> writer.completed()
        ['epoch-1.pth']
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._process = os.getpid()
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._results: list[T] = []

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._ours() and self._thread is not None and self._thread.is_alive()

    def submit(self, job: Callable[[], T]) -> None:
        """Starts a job once the one before has ended.

        Raises:
            CheckpointError: The one before does not end in time (`errno` is ETIMEDOUT).
            Exception: The error of the job before, if `check` did not raise it yet; `job` is not
                started then.
        """
        self._join(self._timeout)
        self.check()
        self._thread = Thread(target=self._run, args=(job,), name="danling-writer", daemon=False)
        self._thread.start()

    def check(self) -> None:
        """Raises, once, what a job raised: to be called at every step."""
        if self._error is not None and self._ours():
            error, self._error = self._error, None
            raise error

    def completed(self) -> list[T]:
        """The results of the jobs that ended well, in their order, each once."""
        results: list[T] = []
        while self._results and self._ours():
            results.append(self._results.pop(0))
        return results

    def collect(self) -> list[T]:
        """The results of jobs since the last call, once the one under way has ended.

        Raises:
            Exception: The errors that `drain` raises.
        """
        self.drain()
        return self.completed()

    def settle(self) -> None:
        """Waits until nothing is under way; what it raised is left to the next call."""
        self._join(self._timeout)

    def drain(self, timeout: float | None = None) -> None:
        """Waits until nothing is under way, then does as `check`.

        Args:
            timeout: Seconds, in place of the writer's own.

        Raises:
            CheckpointError: The job does not end in time; it still goes on.
            Exception: The error that the job raised.
        """
        self._join(self._timeout if timeout is None else timeout)
        self.check()

    def _run(self, job: Callable[[], T]) -> None:
        try:
            self._results.append(job())
        except BaseException as error:
            self._error = error

    def _join(self, timeout: float | None) -> None:
        if not self._ours():
            self._process, self._thread, self._error = os.getpid(), None, None
            self._results.clear()
        if self._thread is None:
            return
        start = time.monotonic()
        self._thread.join(timeout)
        waited = time.monotonic() - start
        if self._thread.is_alive():
            message = f"the save before is still being written after {waited:.1f} s"
            raise CheckpointError(errno.ETIMEDOUT, message)
        if waited > _NOTICEABLE:
            _logger.info("waited %.1f s for the save before: save less often", waited)
        self._thread = None

    def _ours(self) -> bool:
        return self._process == os.getpid()


@dataclass(frozen=True)
class Snapshot:
    """An encoded checkpoint in host memory that shares nothing with what it was made from.

    Attributes:
        payload: The copied result of `danling.checkpoint.encoding.encode`.
        memory: The copy's storages, and whether they are pinned: the next snapshot may reuse them.
    """

    payload: Any
    memory: Sequence[_Memory] = ()


def snapshot(checkpoint: Mapping[str, Any], last: Snapshot | None = None) -> Snapshot:
    """Copies a checkpoint to host memory, for `CheckpointStore.commit` in a background thread.

    Tensors on a GPU go through pinned memory, and all copies are complete when this returns.

    Args:
        checkpoint: Values by top-level key.
        last: An earlier snapshot that nobody needs any more: its memory is written over, which
            takes half of the time that new memory does.

    Raises:
        CheckpointError: Something in it cannot be saved; the message has its path.

    Example:
        >>> weight = torch.zeros(2)
        >>> copied = snapshot({"model": {"weight": weight}})
        >>> _ = weight.fill_(1)
        >>> copied.payload["model"]["weight"]
        tensor([0., 0.])
    """
    copier = _Copier(everything=True, spare=() if last is None else last.memory)
    payload = copier.copied(encode(dict(checkpoint)))
    return Snapshot(payload, copier.memory)


def on_host(payload: Any) -> Any:
    """An encoded checkpoint with its tensors in host memory; those that are there are not copied.

    A file written from it can be read on a machine without the device, by a plain `torch.load`.
    """
    return _Copier(everything=False).copied(payload)


def in_memory(payload: Any, kept: Iterable[torch.Tensor] = ()) -> Any:
    """A checkpoint in memory of its own, but for some of its tensors, which stay as they are."""
    return _Copier(everything=True, kept=kept).copied(payload)


def addresses(payload: Any) -> set[int]:
    """The addresses of the memory of the tensors on the host in an encoded checkpoint."""
    found: set[int] = set()
    pending = [payload]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and _in_host_memory(value):
                found.add(value.untyped_storage().data_ptr())
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
    return found


class _Copier:
    """Copies one tree; tensors that share memory share the copy of it."""

    def __init__(
        self,
        everything: bool,
        spare: Sequence[_Memory] = (),
        kept: Iterable[torch.Tensor] = (),
    ) -> None:
        self.memory: list[_Memory] = []
        self._everything = everything
        self._spare: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        for storage, pinned in spare:
            self._spare.setdefault((storage.nbytes(), pinned), []).append(storage)
        self._storages: dict[tuple[torch.device, int, int], torch.UntypedStorage] = {}
        self._copies: list[tuple[int, int, int]] = []
        self._tensors = {id(tensor): tensor for tensor in kept}
        self._devices: set[torch.device] = set()

    def copied(self, payload: Any) -> Any:
        with torch.no_grad():
            result = self._value(payload)
        _copy_memory(self._copies)
        for device in self._devices:  # the copies, not the training step, must be complete
            torch.cuda.current_stream(device).synchronize()
        return result

    def _value(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            kept = value.is_meta or (not self._everything and _in_host_memory(value))
            return value if kept else self._tensor(value)
        if isinstance(value, (dict, OrderedDict, Counter)):
            return self._mapping(value)
        if type(value) in (list, tuple):
            items = [self._value(item) for item in value]
            return items if type(value) is list else tuple(items)
        if self._everything and isinstance(value, (set, bytearray)):
            return value.copy()
        return value

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copied = value.copy()
        if hasattr(value, "__dict__"):  # `_metadata` of a state dict
            vars(copied).update({key: self._value(item) for key, item in vars(value).items()})
        for key, item in value.items():
            copied[key] = self._value(item)
        return copied

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._tensors.get(id(tensor))
        if known is None:
            known = self._tensors[id(tensor)] = self._copy_tensor(tensor)
        return known

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.detach().clone().cpu()
        storage = self._storage(tensor.untyped_storage())
        copied = torch.empty(0, dtype=tensor.dtype).set_(
            storage, tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self._storages:
            self._storages[key] = self._copy_storage(storage)
        return self._storages[key]

    def _copy_storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        kind, size = storage.device.type, storage.nbytes()
        target = self._memory(size, pinned=kind == "cuda")
        if kind == "cpu":
            self._copies.append((target.data_ptr(), storage.data_ptr(), size))
            return target
        if kind == "cuda":
            self._devices.add(storage.device)
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        copy = torch.empty(0, dtype=torch.uint8).set_(target)
        return copy.copy_(source, non_blocking=kind == "cuda").untyped_storage()

    def _memory(self, size: int, *, pinned: bool) -> torch.UntypedStorage:
        if spare := self._spare.get((size, pinned)):
            storage = spare.pop()
        else:
            empty = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            storage = empty.untyped_storage()
        self.memory.append((storage, pinned))
        return storage


def _copy_memory(copies: Sequence[tuple[int, int, int]]) -> None:
    """Copy between addresses of the host, (target, source, size), on several cores.

    The threads of torch are not used, which are one where somebody has set them to one.
    """
    pieces = [
        (target + start, source + start, min(_PIECE, size - start))
        for target, source, size in copies
        for start in range(0, size, _PIECE)
    ]
    threads = min(_COPIERS, os.cpu_count() or 1, len(pieces))
    if threads < 2 or sum(size for _, _, size in pieces) < _PIECE:
        threads = 1

    def copy(first: int) -> None:
        for target, source, size in pieces[first::threads]:
            ctypes.memmove(target, source, size)

    with ExitStack() as stack:
        for first in range(1, threads):
            helper = Thread(target=copy, args=(first,), name="danling-copy")
            try:
                helper.start()
            except RuntimeError:  # Python exits, or the system has no more threads
                stack.callback(copy, first)
            else:
                stack.callback(helper.join)
        copy(0)


def _in_host_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"
