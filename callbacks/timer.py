"""A limit of time for the whole training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from danling.callback import Callback
from danling.errors import CallbackError, ConfigError, did_you_mean
from danling.triggers import Every

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Timer"]

_CLOCK: Final = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}):(\d{1,2})")
_SECONDS: Final = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


class Timer(Callback):
    """Stop the training when it has taken so much time, over all launches together.

    What counts is the time between the start and the end of training: a resumed run goes on where
    its clock stood. Several processes agree on the time, and end at the same step. A limit for one
    launch, as that of a job on a cluster, is `Preemption(max_time=...)`.

    It costs one look at the clock per step, and it has no state: the runner keeps the clock.

    Args:
        duration: The time of training: `"DD:HH:MM:SS"`, text as `"30 min"`, a timedelta, or a
            mapping of its arguments.
        interval: Whether the time is looked at after each step or at the end of each epoch.

    Raises:
        CallbackError: The duration is not positive, or cannot be read.

    Example:
        >>> Timer("00:12:00:00").duration
        43200.0
        >>> Timer({"hours": 1, "minutes": 30}).duration == Timer("90 min").duration
        True
    """

    name = "timer"
    only_watches = True

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float],
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        if interval not in ("step", "epoch"):
            near = did_you_mean(str(interval), ["step", "epoch"])
            raise CallbackError(f"Timer(interval={interval!r}): {near}")
        self.duration: float = _seconds(duration)
        self.interval = interval

    def time_elapsed(self, runner: Runner) -> float:
        """The seconds of training so far, those of earlier launches included."""
        return runner.now().seconds

    def time_remaining(self, runner: Runner) -> float:
        """The seconds that are left, never less than 0."""
        return max(self.duration - self.time_elapsed(runner), 0.0)

    def on_train_start(self, runner: Runner) -> None:
        """Stop a resumed run whose time was up before."""
        self._check(runner)

    def on_step(self, runner: Runner) -> None:
        """Stop after the step in which the time was up."""
        if self.interval == "step":
            self._check(runner)

    def on_epoch_end(self, runner: Runner) -> None:
        """Stop after the epoch in which the time was up."""
        self._check(runner)

    def _check(self, runner: Runner) -> None:
        seconds = self.time_elapsed(runner)
        if seconds >= self.duration:
            over = f"{seconds:.0f} of {self.duration:g} s of training are over"
            runner.stop(f"{self.name}: {over}", evaluate=True)


def _seconds(duration: str | timedelta | Mapping[str, float]) -> float:
    """The seconds of a duration."""
    seconds: float | None = None
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, Mapping):
        seconds = _from_mapping(duration)
    elif isinstance(duration, str) and (match := _CLOCK.fullmatch(duration)):
        days, hours, minutes, rest = map(int, match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
    elif isinstance(duration, str):
        seconds = _from_text(duration)
    if seconds is None or seconds <= 0:
        raise CallbackError(
            f"Timer(duration={duration!r}): write 'DD:HH:MM:SS', '30 min' or a positive timedelta"
        )
    return seconds


def _from_mapping(duration: Mapping[str, float]) -> float:
    try:
        return timedelta(**duration).total_seconds()
    except TypeError as error:
        raise CallbackError(f"Timer(duration={dict(duration)!r}): {error}") from error


def _from_text(duration: str) -> float | None:
    try:
        every = Every(duration)
    except ConfigError:
        return None
    return every.value * _SECONDS[every.unit] if every.unit in _SECONDS else None
