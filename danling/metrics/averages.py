"""Exact means of values that stay on their device until somebody needs a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor

from danling.errors import MetricError, did_you_mean

__all__ = ["Averages", "Meter", "Reduction", "Total", "check_reduction", "reduce_totals"]


_CAPACITY: Final = 128  # values held per name before they are folded into one sum on the device

Reduction = Literal["mean", "sum", "max", "min", "last"]
"""The reduction of the values of one name."""


def check_reduction(name: str) -> None:
    """Refuse a word that is no reduction.

    Raises:
        MetricError: The word is no reduction.

    Example:
        >>> check_reduction("maximum")
        Traceback (most recent call last):
        ...
        danling.errors.MetricError: there is no reduce='maximum': ...
    """
    if name not in get_args(Reduction):
        near = did_you_mean(name, get_args(Reduction))
        raise MetricError(f"there is no reduce={name!r}: {near}")


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over samples, with their number and that of values that were not finite.

    Attributes:
        sum: The sum of the values; the largest, smallest or last one where that is wanted.
        count: The number of samples that a mean is over, else that of the values.
        nonfinite: The number of values that were not finite.
        reduce: The reduction of the values.
    """

    sum: float = 0.0
    count: float = 0.0
    nonfinite: int = 0
    reduce: Reduction = "mean"

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan

    @property
    def value(self) -> float:
        """The mean, or what else is wanted; NaN where there is nothing."""
        return self.mean if self.reduce == "mean" else self.sum

    def __add__(self, later: Total) -> Total:
        """The total of this and of a later one."""
        if not (self.count and later.count):
            return self if self.count else later
        if self.reduce != later.reduce:
            raise MetricError(f"one name has reduce={self.reduce!r} and {later.reduce!r}")
        both = (self.sum, later.sum)
        adds = self.reduce in ("mean", "sum")
        reduced = sum(both) if adds else picked(self.reduce, both)
        count, nonfinite = self.count + later.count, self.nonfinite + later.nonfinite
        return Total(reduced, count, nonfinite, self.reduce)

    def beside(self, other: Total) -> Total:
        """The total of this and of one of a higher rank; the last value is that of here."""
        return other + self if self.reduce == "last" else self + other

    @classmethod
    def of(cls, numbers: list[Any]) -> Total:
        """A total from its `state`."""
        return cls(numbers[0], numbers[1], int(numbers[2]), *numbers[3:])

    def state(self) -> list[Any]:
        """The three numbers, and what is wanted where it is no mean, for a checkpoint."""
        numbers = [self.sum, self.count, self.nonfinite]
        return numbers if self.reduce == "mean" else [*numbers, self.reduce]


def picked(reduce: Reduction, values: Sequence[float]) -> float:
    """The largest, smallest or last value; a value that is no number is the largest and smallest.

    Example:
        >>> picked("max", [1.0, 3.0, 2.0]), picked("last", [1.0, 2.0])
        (3.0, 2.0)
        >>> picked("min", [1.0, float("nan"), 2.0])
        nan
    """
    if reduce == "last":
        return values[-1]
    if any(map(math.isnan, values)):
        return math.nan
    return max(values) if reduce == "max" else min(values)


class _Series:
    """Values of one name that were not brought to the host yet."""

    __slots__ = ("counts", "folded", "reduce", "values")

    def __init__(self, reduce: Reduction = "mean") -> None:
        self.values: list[Tensor | float] = []
        self.counts: list[Tensor | float] = []
        self.folded: Tensor | None = None  # a `Total`, on the device
        self.reduce: Reduction = reduce

    def fold(self) -> None:
        """Bring what was added into one sum, without waiting for the device."""
        values, counts = vector(self.values), self.counts
        if self.reduce != "mean":
            self.values, self.counts = [_REDUCED[self.reduce](values)], [1]
            return
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
        """The contents: values, the number of samples of each, and the sum of those before."""
        return [*self.values, *self.counts, *(() if self.folded is None else self.folded.unbind())]

    def total(self, numbers: Iterator[float]) -> Total:
        """The sum of it all, from the numbers of `all` on the host."""
        values = [next(numbers) for _ in self.values]
        counts = [next(numbers) for _ in self.counts]
        if self.reduce != "mean":
            nonfinite = sum(not math.isfinite(value) for value in values)
            reduced = sum(values) if self.reduce == "sum" else picked(self.reduce, values)
            return Total(reduced, len(values), nonfinite, self.reduce)
        pairs = [pair for pair in zip(values, counts, strict=True) if pair[1] > 0]
        total = Total(
            sum(value * count for value, count in pairs),
            sum(counts),
            sum(not math.isfinite(value) for value, _ in pairs),
        )
        if self.folded is None:
            return total
        return Total.of([next(numbers) for _ in range(3)]) + total


_REDUCED: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "sum": Tensor.sum,
    "max": Tensor.max,
    "min": Tensor.min,
    "last": itemgetter(-1),
}


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
        >>> averages.take()["loss"].value
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

    def keep(self, name: str, value: Tensor | float, reduce: Reduction) -> None:
        """Add a value of which the sum, the largest, the smallest or the last one is wanted.

        Raises:
            MetricError: Another reduction was wanted of values of the same name.
        """
        series = self._series.setdefault(name, _Series(reduce))
        if series.reduce != reduce:
            raise MetricError(f"{name!r} is logged with reduce={series.reduce!r} and {reduce!r}")
        self.add(name, value)

    def take(self) -> dict[str, Total]:
        """Take all totals since the last `take`, on the host; what was added is forgotten here."""
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

    Attributes:
        add: Adds a value to the window and to the epoch.
        of_window: The values of the window and the epoch that are not on the host yet.
        of_epoch: The averages of the epoch alone.
    """

    def __init__(self) -> None:
        self.of_window = Averages()
        self.of_epoch = Averages()
        self._totals: dict[str, dict[str, Total]] = {"epoch": {}, "window": {}, "epoch only": {}}
        self.add = self.of_window.add

    def end_interval(self) -> dict[str, Total]:
        """Totals since the last call."""
        self._collect()
        window, self._totals["window"] = self._totals["window"], {}
        return window

    def start_epoch(self) -> None:
        """Begin the totals of an epoch; what was logged for it before it began is of it."""
        self._collect_steps()
        self._totals["epoch"], self._totals["epoch only"] = {}, {}

    def epoch_totals(self) -> dict[str, Total]:
        """Totals of the epoch so far."""
        self._collect()
        return self._totals["epoch"]

    def epoch_only_totals(self) -> dict[str, Total]:
        """Totals of what was added for the epoch alone."""
        self._collect()
        return self._totals["epoch only"]

    def state_dict(self) -> dict[str, Any]:
        """The open averages, in plain numbers."""
        self._collect()
        return {
            kind: {name: total.state() for name, total in totals.items()}
            for kind, totals in self._totals.items()
        }

    def load_state_dict(self, *states: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Go on from what was open, in one process or, added up, in several."""
        self.of_window.take()
        self.of_epoch.take()
        for kind in self._totals:
            saved = [state.get(kind, {}) for state in states]
            parts = [{name: Total.of(numbers) for name, numbers in each.items()} for each in saved]
            self._totals[kind] = merged(parts)

    def __bool__(self) -> bool:
        return bool(self.of_window or self._totals["window"])

    def _collect(self) -> None:
        self._collect_steps()
        _add_to(self._totals["epoch only"], self.of_epoch.take())

    def _collect_steps(self) -> None:
        taken = self.of_window.take()
        _add_to(self._totals["epoch"], taken)
        _add_to(self._totals["window"], taken)


def _add_to(totals: dict[str, Total], taken: Mapping[str, Total]) -> None:
    for name, total in taken.items():
        totals[name] = totals.get(name, Total()) + total


def reduce_totals(
    totals: dict[str, Total], gather: Callable[[dict[str, Total]], list[dict[str, Total]]]
) -> dict[str, Total]:
    """The totals of all processes together."""
    return merged(gather(totals))


def merged(parts: Sequence[Mapping[str, Total]]) -> dict[str, Total]:
    """The totals of all processes, given those of each in the order of their ranks."""
    reduced: dict[str, Total] = {}
    for part in parts:
        for name, total in part.items():
            before = reduced.get(name)
            reduced[name] = total if before is None else before.beside(total)
    return reduced
