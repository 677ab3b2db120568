"""The agreement of the processes of a run.

Every method that gathers, broadcasts or agrees is a collective: all processes must call it. It
travels through the CPU, so that no device is synchronised, and with one process each is a plain
return and nothing of torch is touched, nor imported.

Each collective carries the name of the call that it is part of. So one that only some processes
make is an error that names it, at once, and not a wait for ever: either the others come with
another call, or they are seen to have gone past it.
"""

from __future__ import annotations

import contextlib
import ctypes
import pickle
import struct
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from danling.errors import DistributedError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Group", "World"]


T = TypeVar("T")

_NUMBERS = 4
_HEADER = struct.Struct(f"<q{_NUMBERS}d64s")  # bytes that follow, numbers, name of the call
_LOOK_AROUND = timedelta(seconds=0.5)  # how long a collective waits before it asks where others are
_REPORT_TIMEOUT = 20.0  # seconds for the process that failed to close its files
_PRINTING = 0.5  # seconds for Python to print a traceback


class _Message(NamedTuple):
    """The message of a process to a collective: the size of what follows, numbers, the call."""

    size: int
    numbers: tuple[float, ...]
    call: str


class World:
    """The processes of a run, and the group on the CPU through which they agree.

    Args:
        rank: The rank of this process.
        size: The number of processes; several must all make their world together.
        timeout: Seconds after which a collective whose peer is alive and does not come raises.

    Example:
        >>> world = World()
        >>> world.gather("one"), world.broadcast("two"), world.maximum([3.0])
        (['one'], 'two', [3.0])
    """

    def __init__(self, rank: int = 0, size: int = 1, timeout: float = 1800.0) -> None:
        self.rank = rank
        self.size = size
        self._timeout = timedelta(seconds=timeout)
        self._calls: list[str] = []
        self._collectives = self._batches = 0
        self._total: Callable[[], list[_Message]] | None = None  # a sum that was begun
        if size > 1:
            self._group = Group(self._timeout)
            self._store = _make_store(rank)

    @property
    def group(self) -> Any:
        """The group of torch for collectives through the CPU; nobody else may keep it."""
        return self._group.handle if self.size > 1 else None

    def twin(self) -> World:
        """A second world of the same processes, for a thread that agrees while the others train."""
        return World(self.rank, self.size, self._timeout.total_seconds())

    # Values

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        import torch
        import torch.distributed as dist

        data = pickle.dumps(value)
        sizes = [message.size for message in self._exchange("gather", size=len(data))]
        parts = [torch.empty(max(sizes), dtype=torch.uint8) for _ in sizes]
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(data)] = _as_tensor(data)
        self._finish(dist.all_gather(parts, own, group=self._group.handle, async_op=True))
        return [
            pickle.loads(part[:size].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of one rank, on every rank."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        data = pickle.dumps(value) if self.rank == source else b""
        size = self._exchange("broadcast", size=len(data))[source].size
        tensor = _as_tensor(data) if data else torch.empty(size, dtype=torch.uint8)
        self._finish(dist.broadcast(tensor, source, group=self._group.handle, async_op=True))
        return value if data else pickle.loads(tensor.numpy().tobytes())

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest of each of up to four values over the ranks: a flag that is up anywhere."""
        if self.size == 1:
            return list(values)
        messages = self._exchange("maximum", values)
        columns = zip(*(message.numbers for message in messages), strict=True)
        return [max(column) for column in columns][: len(values)]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.maximum([])

    def begin_total(self, values: Sequence[float]) -> None:
        """Begin to add up to four values over the ranks; `total` waits for the sums.

        What is done in between takes none of the time that the messages take.
        """
        self._total = self._send("total", values)

    def total(self) -> list[float]:
        """The sums of the values that every rank gave to `begin_total`, up to four."""
        receive, self._total = self._total, None
        assert receive is not None
        columns = zip(*(message.numbers for message in receive()), strict=True)
        return [sum(column) for column in columns]

    # Errors

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 and give its value to all; what it raises, all raise."""
        if self.size == 1:
            return work()
        value, error = None, None
        if self.rank == 0:
            try:
                value = work()
            except Exception as caught:
                error = caught
        value, failure = self.broadcast((value, _packed(error)))
        self._raise(error, [failure])
        return value  # type: ignore[return-value]  # no error: it is what `work` returned

    def agree_on_error(self, error: Exception | None) -> None:
        """Raise on every rank when any of them failed: its own error where it has one."""
        if self.size == 1:
            failures = []
        elif self.maximum([error is not None])[0]:
            failures = self.gather(_packed(error))
        else:
            return
        self._raise(error, failures)

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank; when it fails on one, all raise."""
        value, error = None, None
        try:
            value = work()
        except Exception as caught:
            error = caught
        self.agree_on_error(error)
        return value  # type: ignore[return-value]  # no error: it is what `work` returned

    def _raise(self, own: Exception | None, failures: Sequence[bytes | None]) -> None:
        if own is not None:
            raise own
        for rank, failure in enumerate(failures):
            if failure is not None:
                error: Exception = pickle.loads(failure)
                error.add_note(f"raised on rank {rank}, and on this rank with it")
                error.__dict__["failed_rank"] = rank
                raise error

    def let_failed_rank_report(self, error: BaseException) -> None:
        """Wait before an error leaves, so that the failed process prints its traceback first."""
        if self.size == 1:
            return
        if self._total is not None:  # the error came before anybody waited for it
            self._group.keep_forever()
        rank = error.__dict__.get("failed_rank", self.rank)
        with contextlib.suppress(RuntimeError):  # whoever held the store is gone
            if rank == self.rank:
                self._store.set(f"left/{rank}", "")
                return
            self._store.wait([f"left/{rank}"], timedelta(seconds=_REPORT_TIMEOUT))
            time.sleep(_PRINTING)

    # Calls

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Enter a call that every process must make; a collective."""
        if self.size == 1:
            yield
            return
        self._calls.append(name)
        try:
            self._exchange("enter")
            yield
        finally:
            self._calls.pop()

    def begin_batch(self) -> None:
        """Let others know that this process goes on: whoever waits for it before that need not."""
        if self.size > 1:
            self._batches += 1
            self._publish("the next batch")

    # Below

    def _exchange(self, kind: str, numbers: Sequence[float] = (), size: int = 0) -> list[_Message]:
        """Give every rank the message of every other; all must be in the same call."""
        return self._send(kind, numbers, size)()

    def _send(
        self, kind: str, numbers: Sequence[float] = (), size: int = 0
    ) -> Callable[[], list[_Message]]:
        """Send a message to every rank; returns what waits for those of the others."""
        import torch
        import torch.distributed as dist

        call = f"{self._calls[-1] if self._calls else 'the run'}|{kind}"
        self._collectives += 1
        self._publish(call)
        padded = [*numbers, *[0.0] * (_NUMBERS - len(numbers))]
        own = _as_tensor(_HEADER.pack(size, *padded, call.encode()[:64]))
        parts = [torch.empty_like(own) for _ in range(self.size)]
        work = dist.all_gather(parts, own, group=self._group.handle, async_op=True)

        def receive() -> list[_Message]:
            self._finish(work)
            messages = [_unpacked(part) for part in parts]
            for rank, message in enumerate(messages):
                if message.call != messages[self.rank].call:
                    raise self._misfit(rank, message.call)
            return messages

        return receive

    def _publish(self, call: str) -> None:
        """Write where this process is; it takes some microseconds, and waits for nothing."""
        self._store.set(f"at/{self.rank}", f"{self._collectives} {self._batches} {call}")

    def _finish(self, work: Any) -> None:
        """Wait for a collective, and look from time to time whether the others will come."""
        deadline = time.monotonic() + self._timeout.total_seconds()
        try:
            while not self._waited(work):
                self._look_around()
                if time.monotonic() > deadline:
                    raise DistributedError(
                        f"rank {self.rank} waited {self._timeout.total_seconds():.0f} s in "
                        f"{self._call} for the other processes"
                    )
        finally:
            if not work.is_completed():  # also where a signal's handler has raised
                self._group.keep_forever()

    def _waited(self, work: Any) -> bool:
        """Wait for a collective until it is time to look around: whether it is done."""
        try:
            work.wait(_LOOK_AROUND)
        except RuntimeError as error:  # also when the time is over
            if work.is_completed() and not work.is_success():
                raise DistributedError(
                    f"another process has gone while this one, rank {self.rank}, was in "
                    f"{self._call}: its own error says why"
                ) from error
        return bool(work.is_completed())

    @property
    def _call(self) -> str:
        return self._calls[-1] if self._calls else "the run"

    def _look_around(self) -> None:
        """Raise if another process went past this collective, and will not come."""
        for rank in range(self.size):
            key = f"at/{rank}"
            if rank == self.rank or not self._store.check([key]):
                continue
            collectives, batches, call = self._store.get(key).decode().split(" ", 2)
            if int(collectives) < self._collectives and int(batches) > self._batches:
                raise self._misfit(rank, call)

    def _misfit(self, rank: int, call: str) -> DistributedError:
        where = call.partition("|")[0]
        return DistributedError(
            f"rank {self.rank} is in {self._call} while rank {rank} is in {where}: every process "
            f"must make this call. Take it out of `if runner.is_main_process:` (files are "
            "written by the main process anyway)"
        )


def _make_store(rank: int) -> Any:
    """Keys of one world in the store of the default group."""
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    number = store.add(f"danling/{rank}", 1)  # every process makes its worlds in the same order
    return dist.distributed_c10d.PrefixStore(f"danling/{number}/", store)


def _as_tensor(data: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(part: Tensor) -> _Message:
    size, *numbers, call = _HEADER.unpack(part.numpy().tobytes())
    return _Message(size, tuple(numbers), call.rstrip(b"\0").decode())


def _packed(error: Exception | None) -> bytes | None:
    """An error as another process can raise it: the same, or one that tells of it."""
    if error is None:
        return None
    with contextlib.suppress(Exception):  # any class may do anything when it is pickled
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is type(error):
            return data
    return pickle.dumps(DistributedError(f"{type(error).__name__}: {error}"))


_LETTING_GO = 0.05  # seconds for the threads of other groups to drop tensors of Python


class Group:
    """A group of all processes, which ends with this object or before the interpreter does.

    A thread of gloo drops the tensors of a collective after it has told those who wait. It takes
    the GIL for that, and a thread that asks an interpreter on its way out for the GIL aborts the
    process (github.com/pytorch/pytorch/issues/190489). So the threads are joined before.

    Args:
        timeout: The longest time that one of its collectives may take.
    """

    def __init__(self, timeout: timedelta) -> None:
        import torch.distributed as dist

        self._handles: list[Any] = [dist.new_group(backend="gloo", timeout=timeout)]
        weakref.finalize(self, _destroy, self._handles)

    @property
    def handle(self) -> Any:
        """The group of `torch.distributed`; nobody else may keep it."""
        return self._handles[0]

    def keep_forever(self) -> None:
        """Let the process end with a collective open: a join would wait for who does not come."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handle))


def _destroy(handles: list[Any]) -> None:
    import torch.distributed as dist

    handle = handles.pop()
    with contextlib.suppress(ValueError, RuntimeError):  # it went with the default group
        dist.destroy_process_group(handle)
    del handle  # the last reference: this joins its threads
    time.sleep(_LETTING_GO)  # DDP holds the default group to the end: nobody can join those
