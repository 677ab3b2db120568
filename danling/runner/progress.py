"""The counters of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from danling.runner.batches import Window

__all__ = ["Clock", "Counters", "OpenBatch"]


@dataclass(slots=True)
class Counters:
    """What was completed: a counter counts what is over, never what is under way.

    Attributes:
        epoch: Epochs completed.
        global_step: Optimizer steps completed.
        batch_index: Batches completed in this epoch.
    """

    epoch: int = 0
    global_step: int = 0
    batch_index: int = 0


@dataclass(slots=True)
class Clock:
    """Training time in seconds that survives a resume; stands still between runs."""

    before: float = 0.0
    _started: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Let it run; a monotonic clock, since wall clocks jump."""
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        """Let it stand still."""
        self.before, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self._started is None else time.monotonic() - self._started)


@dataclass(slots=True)
class OpenBatch:
    """The batch in hand, between its two hooks."""

    batch: Any
    window: Window
    output: Any = None
    stepped: bool = False
