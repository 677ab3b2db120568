"""Exact means of values that stay on their device until somebody needs a number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["Averages", "Meter", "Total"]

_CAPACITY: Final = 64  # values held per name before they are folded into one sum on the device


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
        return list(astuple(self))


class _Series:
    """Values of one name that were not brought to the host yet."""

    __slots__ = ("counts", "folded", "values")

    def __init__(self) -> None:
        self.values: list[Tensor | float] = []
        self.counts: list[Tensor | float] = []
        # sum, number of non-finite values, and counts that are on the device
        self.folded: Tensor | None = None

    def fold(self) -> None:
        """Bring what was added into one sum; counts of the host stay there."""
        tensors = [value for value in self.values if isinstance(value, Tensor)]
        if len(tensors) < len(self.values):
            device = tensors[0].device if tensors else "cpu"
            tensors = [
                torch.as_tensor(value, dtype=torch.float64, device=device) for value in self.values
            ]
        start = 0
        for stop in range(
            1, len(tensors) + 1
        ):  # runs of one count need no tensor of weights, which would be a copy
            if stop == len(tensors) or self.counts[stop] != self.counts[start]:
                part = torch.stack([tensor.reshape(()) for tensor in tensors[start:stop]]).to(
                    _wide(tensors[0])
                )
                pair = torch.stack((part.sum() * self.counts[start], (~part.isfinite()).sum()))
                self.folded = pair if self.folded is None else self.folded + pair
                start = stop
        self.values.clear()


class Averages:
    """Means over samples: sums in float64 on the device, counts on the host.

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
        self._counts: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, count: float = 1) -> None:
        """Add the mean of `count` samples; a tensor must be a detached scalar."""
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = _Series()
        series.values.append(value)
        series.counts.append(count)
        if len(series.values) >= _CAPACITY:
            self._fold(name, series)

    def take(self) -> dict[str, Total]:
        """All totals since the last `take`, on the host; what was added is forgotten here."""
        for name, series in self._series.items():
            if series.values:
                self._fold(name, series)
        folded = {
            name: series.folded
            for name, series in self._series.items()
            if series.folded is not None
        }
        totals = {
            name: Total(value, self._counts[name], int(nonfinite))
            for name, (value, nonfinite) in zip(
                folded, _to_host(list(folded.values())), strict=True
            )
        }
        self._series, self._counts = {}, {}
        return totals

    def __bool__(self) -> bool:
        return bool(self._series)

    def _fold(self, name: str, series: _Series) -> None:
        self._counts[name] = self._counts.get(name, 0.0) + sum(series.counts)
        series.fold()
        series.counts.clear()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # MPS has no float64


def _to_host(pairs: list[Tensor]) -> Iterable[list[float]]:
    if not pairs:
        return []
    if len({pair.device for pair in pairs}) == 1:
        return [list(pair) for pair in torch.stack(pairs).tolist()]
    return [list(pair.tolist()) for pair in pairs]


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

    def load_state_dict(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Go on from what was open."""
        self._pending.take()
        self._epoch = {name: Total.of(numbers) for name, numbers in state["epoch"].items()}
        self._window = {name: Total.of(numbers) for name, numbers in state["window"].items()}

    def __bool__(self) -> bool:
        return bool(self._pending or self._window)

    def _collect(self) -> None:
        for name, total in self._pending.take().items():
            self._epoch[name] = self._epoch.get(name, Total()) + total
            self._window[name] = self._window.get(name, Total()) + total
