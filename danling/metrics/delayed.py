"""Scalars that reach the host some steps later, so that nothing waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Delayed"]


class Delayed:
    """Scalars by step, read a fixed number of steps after they were computed.

    A value is copied to the host beside the work of the device, and read when the device has long
    passed it. The delay is a number of steps and not "when it is there", so that all processes
    read the same values at the same step. On the CPU nothing is delayed.

    Args:
        lag: The number of further values after which one is read, on a device that works by itself.

    Example:
        >>> losses = Delayed()
        >>> losses.add(1, torch.tensor(0.5))
        >>> losses.ready(), losses.ready()
        ([(1, 0.5)], [])
    """

    def __init__(self, lag: int = 2) -> None:
        self.lag = lag
        self._waiting: list[tuple[int, Tensor | float, Any]] = []

    def add(self, step: int, value: Tensor) -> None:
        """Let a scalar of a step come to the host; later changes of the tensor do not matter."""
        value = value.detach()
        if value.is_cuda:
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            host.copy_(value.reshape(()), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            event.record(torch.cuda.current_stream(value.device))
            self._waiting.append((step, host, event))
        elif value.device.type == "cpu":
            self._waiting.append((step, _number(value), None))
        else:
            self._waiting.append((step, value.clone(), "on its device"))

    def ready(self) -> list[tuple[int, float]]:
        """The values that are to be read now, each once, the oldest first."""
        kept = sum(1 for *_, event in self._waiting[-self.lag :] if event is not None)
        return self._take(len(self._waiting) - (kept if self.lag else 0))

    def all(self) -> list[tuple[int, float]]:
        """Read all values that were not read yet; waits for the device."""
        return self._take(len(self._waiting))

    def peek(self) -> list[tuple[int, float]]:
        """The values that were not read yet, to be read again: a checkpoint holds them."""
        taken = self.all()
        self._waiting = [(step, number, "of a checkpoint") for step, number in taken]
        return taken

    def load(self, values: list[tuple[int, float]]) -> None:
        """Go on with what `peek` gave."""
        self._waiting = [(step, number, "of a checkpoint") for step, number in values]

    def _take(self, number: int) -> list[tuple[int, float]]:
        taken, self._waiting = self._waiting[:number], self._waiting[number:]
        for *_, event in taken:
            if isinstance(event, torch.cuda.Event):
                event.synchronize()
        return [(step, _number(value)) for step, value, _ in taken]


def _number(value: Tensor | float) -> float:
    number: Any = value.tolist() if isinstance(value, Tensor) else value
    return float(number)
