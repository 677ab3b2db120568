"""What the processes of a run decide together.

Every function here is a collective when there are several processes: all of them must call it, and
it
travels through the CPU, so that no device is synchronised. With one process each is a plain return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from danling.errors import DistributedError

__all__ = ["World"]

T = TypeVar("T")


class World:
    """The processes of a run, and the group of the CPU through which they agree.

    Args:
        rank: Of this process.
        size: How many there are.
        timeout: Seconds after which a collective whose peer is gone raises.
    """

    def __init__(self, rank: int = 0, size: int = 1, timeout: float = 1800.0) -> None:
        self.rank = rank
        self.size = size
        self._timeout = timedelta(seconds=timeout)
        self._group: Any = None

    @property
    def group(self) -> Any:
        """A gloo group of all processes, made on first use: NCCL would synchronise the device."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self._group

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of one rank, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=source, group=self.group)
        return box[0]  # type: ignore[no-any-return]  # what comes out is what went in on the source

    def maximum(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the ranks: a flag that is up anywhere is up."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return list(tensor.tolist())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

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
        value, message = self.broadcast(
            (value, None if error is None else f"{type(error).__name__}: {error}")
        )
        if error is not None:
            raise error
        if message is not None:
            raise DistributedError(f"rank 0 failed, and this rank with it: {message}")
        return value  # type: ignore[return-value]  # no error: it is what `work` returned

    def agree_on_error(self, error: Exception | None) -> None:
        """Raise on every rank when any of them failed: its own error where it has one."""
        messages = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [(rank, message) for rank, message in enumerate(messages) if message is not None]
        if failed:
            rank, message = failed[0]
            raise DistributedError(f"rank {rank} failed, and this rank with it: {message}")
