"""The shared base of callbacks that follow one value of the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from danling.callback import Callback
from danling.errors import CallbackError, MetricError, did_you_mean
from danling.metrics.history import flatten, is_better

__all__ = ["Monitor"]


class Monitor(Callback):
    """Follow one value of the results: which one, and what counts as better.

    Args:
        monitor: The value, as `"val/loss"`; None for the monitor of the runner.
        mode: Whether lower (`"min"`) or higher (`"max"`) is better; None for the mode of the
            runner, which needs a `mode` when `monitor` is another value than the runner's.
        min_delta: The difference to the best that a score must have to count; not negative.

    Raises:
        CallbackError: An argument cannot be meant.

    Example:
        >>> monitor = Monitor("val/accuracy", "max", min_delta=0.01)
        >>> monitor.is_better(0.92, 0.90, "max"), monitor.is_better(0.905, 0.90, "max")
        (True, False)
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        min_delta: float = 0.0,
    ) -> None:
        kind = type(self).__name__
        if monitor is not None and not all(monitor.partition("/")):
            raise CallbackError(
                f"{kind}(monitor={monitor!r}): a monitor is a split and a name, as 'val/loss'"
            )
        if mode not in ("min", "max", None):
            near = did_you_mean(str(mode), ["min", "max"])
            raise CallbackError(f"{kind}(mode={mode!r}): {near}")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise CallbackError(
                f"{kind}(min_delta={min_delta!r}): must not be negative; `mode` gives the direction"
            )
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta

    def is_better(
        self, score: float | None, best: float | None, mode: Literal["min", "max"]
    ) -> bool:
        """Whether a score beats the best by more than `min_delta`; NaN and infinities never do."""
        if best is not None:
            best += self.min_delta if mode == "max" else -self.min_delta
        return is_better(score, best, mode)

    def resolve(
        self, monitor: str, mode: Literal["min", "max"]
    ) -> tuple[str, Literal["min", "max"]]:
        """The value that is followed and its mode, given those of the runner.

        Raises:
            CallbackError: The value is not the runner's, and no mode was given.
        """
        own = self.monitor or monitor
        if self.mode is not None:
            return own, self.mode
        if own == monitor:
            return own, mode
        if own.endswith("/loss"):
            return own, "min"
        kind = type(self).__name__
        raise CallbackError(f"{kind}(monitor={own!r}): pass mode='min' or mode='max' too")

    def score(self, monitor: str, result: Mapping[str, Any]) -> float | None:
        """The value of a result; None where its split was not evaluated.

        Raises:
            MetricError: The split was evaluated and gave no such value.
        """
        split, _, name = monitor.partition("/")
        values = result.get(split)
        if not isinstance(values, Mapping):
            return None
        if name not in values:
            known = flatten(result)
            raise MetricError(
                f"{type(self).__name__}(monitor={monitor!r}): {did_you_mean(monitor, known)} "
                f"(the result has {', '.join(known)})"
            )
        return float(values[name])
