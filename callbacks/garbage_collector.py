"""Garbage is collected on all processes at the same step."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from danling.callback import Callback
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["GarbageCollector"]


class GarbageCollector(Callback):
    """Switch automatic garbage collection off, and collect every so many steps instead.

    Python collects when it has made enough objects, which is at another step on each process; all
    wait for the one that collects. With this they collect together. The collector is as it was
    when the run is over. It costs a collection of the two young generations at each interval, and
    has no state.

    Args:
        step_interval: The number of steps between two collections.

    Raises:
        CallbackError: The interval is not a positive integer.

    Example:
        >>> GarbageCollector(step_interval=500).step_interval
        500
    """

    name = "garbage_collector"
    only_watches = True

    def __init__(self, step_interval: int = 1000) -> None:
        if type(step_interval) is not int or step_interval < 1:
            raise CallbackError(f"GarbageCollector(step_interval={step_interval!r}): at least 1")
        self.step_interval = step_interval
        self._was_enabled = False

    def on_setup(self, runner: Runner) -> None:
        """Switch automatic collection off."""
        self._was_enabled = gc.isenabled()
        gc.disable()

    def on_step(self, runner: Runner) -> None:
        """Collect, where it is due."""
        if runner.global_step % self.step_interval == 0:
            gc.collect(1)  # a full one takes long, and finds little more

    def on_teardown(self, runner: Runner) -> None:
        """Put automatic collection back as it was."""
        if self._was_enabled:
            gc.enable()
