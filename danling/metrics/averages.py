"""Exact means of values that stay on their device until somebody needs a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

__all__ = ["Averages", "Meter", "Total", "reduce_totals"]


_CAPACITY: Final = 128  # values held per name before they are folded into one sum on the device


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over samples, with their number and that of values that were not finite."""

    sum: float = 0.0
    count: float = 0.0
    nonfinite: int = 0

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan

    def __add__(self, other: Total) -> Total:
        return Total(
            self.sum + other.sum, self.count + other.count, self.nonfinite + other.nonfinite
        )

    @classmethod
    def of(cls, numbers: list[float]) -> Total:
        """A total from its `state`."""
        return cls(numbers[0], numbers[1], int(numbers[2]))

    def state(self) -> list[float]:
        """The three numbers, for a checkpoint."""
        return [self.sum, self.count, self.nonfinite]


class _Series:
    """Values of one name that were not brought to the host yet."""

    __slots__ = ("counts", "folded", "values")

    def __init__(self) -> None:
        self.values: list[Tensor | float] = []
        self.counts: list[Tensor | float] = []
        self.folded: Tensor | None = None  # a `Total`, on the device

    def fold(self) -> None:
        """Bring what was added into one sum, without waiting for the device."""
        values, counts = vector(self.values), self.counts
        if isinstance(counts[0], Tensor) or counts.count(counts[0]) < len(counts) or not counts[0]:
            weights = vector(counts).to(values.device, values.dtype, non_blocking=True)
            counted = weights > 0  # the mean of no samples is NaN and says nothing
            total = torch.where(counted, values * weights, 0.0).sum()
            nonfinite = (~values.isfinite() & counted).sum()
            samples = weights.sum()
        else:  # one count for all needs no copy of it on the device
            total, nonfinite = values.sum() * counts[0], (~values.isfinite()).sum()
            samples = total.new_full((), counts[0] * len(counts))
        sums = torch.stack((total, samples, nonfinite))
        self.folded = sums if self.folded is None else self.folded + sums
        self.values.clear()
        self.counts.clear()

    def all(self) -> list[Tensor | float]:
        """What is here: values, how many samples each is of, and the sum of those before."""
        return [*self.values, *self.counts, *(() if self.folded is None else self.folded.unbind())]

    def total(self, numbers: Iterator[float]) -> Total:
        """The sum of it all, from the numbers of `all` on the host."""
        values = [next(numbers) for _ in self.values]
        counts = [next(numbers) for _ in self.counts]
        pairs = [pair for pair in zip(values, counts, strict=True) if pair[1] > 0]
        total = Total(
            sum(value * count for value, count in pairs),
            sum(counts),
            sum(not math.isfinite(value) for value, _ in pairs),
        )
        if self.folded is None:
            return total
        return Total.of([next(numbers) for _ in range(3)]) + total


def vector(numbers: Sequence[Tensor | float]) -> Tensor:
    """Scalars side by side, in the widest type of the device that one of them is on."""
    first = next((number for number in numbers if isinstance(number, Tensor)), None)
    if first is None:
        return torch.tensor(numbers, dtype=torch.float64)
    device, wide = first.device, torch.float64
    if device.type == "mps":
        wide = torch.float32  # MPS has no float64
    if set(map(type, numbers)) == {Tensor}:
        tensors = cast(list[Tensor], numbers)
        return torch.stack([t.reshape(()) if t.ndim else t for t in tensors]).to(wide)
    return torch.stack([torch.as_tensor(n, device=device).reshape(()).to(wide) for n in numbers])


class Averages:
    """Means over samples: sums and counts in float64, on the device.

    `add` keeps a reference and nothing else, so that it costs no kernel and no synchronisation;
    `take` brings everything to the host in one transfer.

    Example:
        >>> averages = Averages()
        >>> averages.add("loss", torch.tensor(1.0), 8)
        >>> averages.add("loss", torch.tensor(4.0), 4)
        >>> averages.take()["loss"].mean
        2.0
    """

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def add(self, name: str, value: Tensor | float, count: Tensor | float = 1) -> None:
        """Add the mean of `count` samples; tensors must be detached scalars."""
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = _Series()
        series.values.append(value)
        series.counts.append(count)
        if len(series.values) >= _CAPACITY:
            series.fold()

    def take(self) -> dict[str, Total]:
        """All totals since the last `take`, on the host; what was added is forgotten here."""
        taken, self._series = self._series, {}
        numbers = iter(_to_host([number for series in taken.values() for number in series.all()]))
        return {name: series.total(numbers) for name, series in taken.items()}

    def __bool__(self) -> bool:
        return bool(self._series)


def _to_host(numbers: list[Tensor | float]) -> list[float]:
    """The numbers as they are; those of each device come in one transfer."""
    by_device: dict[torch.device, list[Tensor | float]] = {}
    for number in numbers:
        if isinstance(number, Tensor):
            by_device.setdefault(number.device, []).append(number)
    found = {device: iter(vector(those).tolist()) for device, those in by_device.items()}
    return [
        next(found[number.device]) if isinstance(number, Tensor) else float(number)
        for number in numbers
    ]


class Meter:
    """The averages of a training: of the open epoch, and of the window since the last log.

    Both are sums on the host; they are fed together from the values on the device, when either is
    asked for.
    """

    def __init__(self) -> None:
        self._pending = Averages()
        self._epoch: dict[str, Total] = {}
        self._window: dict[str, Total] = {}
        self.add = self._pending.add

    def end_window(self) -> dict[str, Total]:
        """Totals since the last call."""
        self._collect()
        window, self._window = self._window, {}
        return window

    def start_epoch(self) -> None:
        """Begin the totals of an epoch."""
        self._collect()
        self._epoch = {}

    def epoch_totals(self) -> dict[str, Total]:
        """Totals of the epoch so far."""
        self._collect()
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """What is open, in plain numbers."""
        self._collect()
        return {
            "epoch": {name: total.state() for name, total in self._epoch.items()},
            "window": {name: total.state() for name, total in self._window.items()},
        }

    def load_state_dict(self, *states: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Go on from what was open, in one process or, added up, in several."""
        self._pending.take()
        self._epoch, self._window = {}, {}
        for state in states:
            for totals, saved in ((self._epoch, state["epoch"]), (self._window, state["window"])):
                for name, numbers in saved.items():
                    totals[name] = totals.get(name, Total()) + Total.of(numbers)

    def __bool__(self) -> bool:
        return bool(self._pending or self._window)

    def _collect(self) -> None:
        for name, total in self._pending.take().items():
            self._epoch[name] = self._epoch.get(name, Total()) + total
            self._window[name] = self._window.get(name, Total()) + total


def reduce_totals(
    totals: dict[str, Total], gather: Callable[[dict[str, Total]], list[dict[str, Total]]]
) -> dict[str, Total]:
    """Add the totals of all processes."""
    reduced, *others = gather(totals)
    for part in others:
        for name, total in part.items():
            reduced[name] = reduced.get(name, Total()) + total
    return reduced
