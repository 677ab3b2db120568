"""Triggers say when to do something: one type for evaluation, checkpoints, logs and profiles."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from danling.errors import ConfigError

__all__ = ["Every", "Moment"]


_UNITS: Final = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "s": "seconds",
    "sec": "seconds",
    "second": "seconds",
    "seconds": "seconds",
    "min": "minutes",
    "minute": "minutes",
    "minutes": "minutes",
    "h": "hours",
    "hour": "hours",
    "hours": "hours",
    "run": "run",
}
_SECONDS: Final = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
_PATTERN: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)?\s*([a-z]+)\s*")
_ROUNDING: Final = 1e-9  # 0.1 * 3 steps short of 0.3 of a run is there


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in a run: what was completed when it was taken.

    Attributes:
        global_step: Optimizer steps completed.
        epoch: Epochs completed.
        seconds: Training time in seconds, earlier launches included; the same on all processes.
        progress: The share of the run that is done, from 0 to 1; NaN where the length is unknown.
        fraction: Share of the open epoch that is done, less than 1; 0 where its length is unknown.
    """

    global_step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    fraction: float = 0.0


class Every:
    """A period: so many steps or epochs, so much time, or a share of the run.

    Args:
        period: `"100 steps"`, `"2 epochs"`, `"0.25 epoch"`, `"30 min"` or `"0.1 run"`; the number
            may be left out for 1 (`"epoch"`).

    Attributes:
        unit: The unit of the period: steps, epochs, seconds, minutes, hours or run.
        value: The number of units.
        is_of_epochs: Whether it ends where an epoch does, and never within one.

    Raises:
        ConfigError: The text is not such a period.

    Example:
        >>> every = Every("100 steps")
        >>> every.is_due(Moment(global_step=200), last=Moment(global_step=101))
        True
        >>> every.is_due(Moment(global_step=199), last=Moment(global_step=101))
        False
        >>> Every("1 epochs") == Every("epoch")
        True
        >>> Every("0.25 epoch").is_due(Moment(epoch=2, fraction=0.5), Moment(epoch=2, fraction=0.4))
        True
        >>> Every("100 stpes")
        Traceback (most recent call last):
        danling.errors.ConfigError: 'stpes' is no unit: use steps, epochs, s, min, hours or run
    """

    __slots__ = ("is_of_epochs", "unit", "value")
    unit: str
    value: float
    is_of_epochs: bool

    def __init__(self, period: str | Every) -> None:
        if isinstance(period, Every):
            self.value, self.unit = period.value, period.unit
            self.is_of_epochs = period.is_of_epochs
            return
        match = _PATTERN.fullmatch(period) if isinstance(period, str) else None
        if match is None:
            raise ConfigError(
                f"{period!r} is not a period: write '100 steps', '2 epochs', '30 min' or '0.1 run'"
            )
        number, word = match.groups()
        if word not in _UNITS:
            raise ConfigError(f"{word!r} is no unit: use steps, epochs, s, min, hours or run")
        self.unit = _UNITS[word]
        self.value = float(number) if number else 1.0
        if self.value <= 0 or (self.unit == "steps" and not self.value.is_integer()):
            raise ConfigError(f"{period!r}: the number must be positive, and whole for steps")
        self.is_of_epochs = self.unit == "epochs" and self.value.is_integer()

    def is_due(self, now: Moment, last: Moment) -> bool:
        """Whether the period was completed between two moments."""
        if self.unit in _SECONDS:
            return now.seconds - last.seconds >= self.value * _SECONDS[self.unit]
        if self.unit == "steps":
            return now.global_step // self.value > last.global_step // self.value
        if self.is_of_epochs:
            return now.epoch // self.value > last.epoch // self.value
        if self.unit == "epochs":
            return self._times(now.epoch + now.fraction) > self._times(last.epoch + last.fraction)
        if math.isnan(now.progress):
            return False
        before = 0.0 if math.isnan(last.progress) else last.progress  # its length came out later
        return self._times(now.progress) > self._times(before)

    def _times(self, share: float) -> int:
        """The number of times that the period has passed."""
        return math.floor(share / self.value + _ROUNDING)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Every):
            return NotImplemented
        return (self.value, self.unit) == (other.value, other.unit)

    def __hash__(self) -> int:
        return hash((self.value, self.unit))

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def __repr__(self) -> str:
        return f"Every({str(self)!r})"
