"""Which callback costs what."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from danling.callback import HOOKS, Callback, Priority

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["CallbackProfiler"]


class CallbackProfiler(Callback):
    """Measure the time in the hooks of all callbacks, and log it as a table at the end.

    The times are those of the host. Hooks of callbacks that only start work of the device cost what
    starting it takes; ones that wait for the device show that wait.

    It costs two looks at the clock for each hook that is called, and has no state. What it puts
    around the hooks is removed at the end of the run.

    Attributes:
        calls: The number of calls of each hook, by the name of the callback and the hook.
        seconds: The seconds that the calls took in all, by the same names.

    Example:
        >>> CallbackProfiler().table()
        'callback  hook  calls  total ms  per call us'
    """

    name = "callback_profiler"
    priority = Priority.HIGHEST - 1  # its on_teardown is the last, its on_setup the first
    only_watches = True

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str], int] = {}
        self.seconds: dict[tuple[str, str], float] = {}
        self._wrapped: list[tuple[Callback, str, Any]] = []

    def on_setup(self, runner: Runner) -> None:
        """Put a clock around every hook that a callback overrides."""
        self.calls, self.seconds = {}, {}
        for callback in runner.callbacks:
            if callback is self:
                continue
            for hook in HOOKS:
                method = getattr(callback, hook)
                if getattr(method, "__func__", method) is not getattr(Callback, hook):
                    own = vars(callback).get(hook)
                    self._wrapped.append((callback, hook, own))
                    setattr(callback, hook, self._measured(callback.name, hook, method))
        runner.callbacks.rebuild()

    def on_teardown(self, runner: Runner) -> None:
        """Log the table, and take the clocks away."""
        for callback, hook, own in self._wrapped:
            if own is None:
                delattr(callback, hook)
            else:
                setattr(callback, hook, own)
        self._wrapped = []
        runner.callbacks.rebuild()
        runner.logger.info("%s\n%s", self.name, self.table())

    def table(self) -> str:
        """A row for each callback and hook, the most expensive first."""
        rows = [("callback", "hook", "calls", "total ms", "per call us")]
        for key, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            calls = self.calls[key]
            times = f"{seconds * 1e3:.1f}", f"{seconds / calls * 1e6:.1f}"
            rows.append((*key, str(calls), *times))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _measured(self, name: str, hook: str, method: Callable[..., None]) -> Callable[..., None]:
        key = name, hook

        @wraps(method)
        def measured(*arguments: Any) -> None:
            start = time.perf_counter()
            try:
                method(*arguments)
            finally:
                self.calls[key] = self.calls.get(key, 0) + 1
                spent = time.perf_counter() - start
                self.seconds[key] = self.seconds.get(key, 0.0) + spent

        return measured
