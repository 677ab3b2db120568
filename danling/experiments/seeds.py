"""Means over seeds: runs of one code and one configuration that differ in their seed alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from danling.experiments.columns import column
from danling.experiments.stored import StoredRun

__all__ = ["Band", "SeedGroup", "Summary", "over_seeds"]


R = TypeVar("R", bound=StoredRun)

_COUNTED = ("finished", "stopped")


@dataclass(frozen=True)
class Summary:
    """A value over seeds."""

    mean: float
    std: float | None
    """The standard deviation of the sample; None of a single value."""
    n: int
    values: tuple[float, ...]

    def __str__(self) -> str:
        spread = f" ± {self.std:.2g}" if self.std is not None else ""
        return f"{self.mean:.4g}{spread} ({self.n})"


class Band(NamedTuple):
    """A curve over seeds, at the steps that all have in common."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    """The smallest value at each step."""
    high: list[float]


@dataclass
class SeedGroup(Generic[R]):
    """Runs of one code and one configuration."""

    runs: list[R] = field(default_factory=list)
    """The runs that count, one per seed: they ended well, and of one seed it is the newest."""
    others: list[R] = field(default_factory=list)
    """The rest: failed, still running, or run again since."""

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration without its seed."""
        run = (self.runs or self.others)[0]
        return {key: value for key, value in run.settings.items() if key != "seed"}

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.runs]

    def summary(self, metric: str) -> Summary | None:
        """The mean and the spread of a value of the best result; None where no run has one."""
        value_of = column(self.runs, metric)
        values = [value_of(run) for run in self.runs]
        numbers = tuple(float(value) for value in values if isinstance(value, int | float))
        if not numbers:
            return None
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
        return Summary(statistics.fmean(numbers), std, len(numbers), numbers)

    def band(self, tag: str) -> Band:
        """The mean of a curve over the seeds, from the smallest value to the largest.

        Raises:
            MetricError: A run has no such curve.
        """
        return band([run.history(tag) for run in self.runs])


def band(histories: Iterable[Any]) -> Band:
    """The band of several histories; of a step that was logged twice the later value counts."""
    curves = [dict(zip(history.steps, history.values, strict=True)) for history in histories]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    rows = [[curve[step] for curve in curves] for step in steps]
    return Band(
        steps, [statistics.fmean(row) for row in rows], list(map(min, rows)), list(map(max, rows))
    )


def over_seeds(runs: Iterable[R]) -> list[SeedGroup[R]]:
    """The runs by code and configuration without the seed, in the order of their newest run."""
    groups: dict[tuple[str, str], SeedGroup[R]] = {}
    taken: dict[tuple[str, str], set[Any]] = {}
    ordered = sorted(runs, key=lambda run: str(run.record["created"]), reverse=True)
    for run in ordered:
        key = run.experiment_id, _canonical(run.settings)
        group = groups.setdefault(key, SeedGroup())
        seed = run.seed if run.seed is not None else run.uuid
        if run.status in _COUNTED and seed not in taken.setdefault(key, set()):
            taken[key].add(seed)
            group.runs.append(run)
        else:
            group.others.append(run)
    return list(groups.values())


def _canonical(settings: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in settings.items() if key != "seed"}
    return json.dumps(kept, sort_keys=True)
