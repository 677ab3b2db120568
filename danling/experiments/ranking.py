"""The order of runs, by a value of their best result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from danling.errors import MetricError
from danling.experiments.columns import column
from danling.experiments.stored import StoredRun

__all__ = ["Mode", "is_comparable", "ranked", "score_of"]


R = TypeVar("R", bound=StoredRun)
Mode = Literal["min", "max"]
"""Whether a lower or a higher value is better."""


def ranked(runs: Sequence[R], metric: str | None = None, mode: Mode | None = None) -> list[R]:
    """The runs that have a score, the best first, of equals the earliest; see `Runs.best`.

    Raises:
        MetricError: The runs have different monitors, or the mode is not known.
    """
    name, mode = score_of(runs, metric, mode)
    sign = 1 if mode == "min" else -1
    value_of = column(runs, name)
    scored = [run for run in runs if is_comparable(value_of(run))]
    return sorted(scored, key=lambda run: (sign * value_of(run), str(run.record["created"])))


def score_of(
    runs: Sequence[StoredRun], metric: str | None = None, mode: Mode | None = None
) -> tuple[str, Mode]:
    """The metric and the mode by which runs are ranked.

    Raises:
        MetricError: The runs have different monitors, or the mode is not known.
    """
    scored = [run for run in runs if run.best is not None] or runs
    monitors = dict.fromkeys((run.monitor, run.monitor_mode) for run in scored)
    if metric is None:
        if len(monitors) > 1:
            told = ", ".join(f"{name} ({mode})" for name, mode in monitors)
            raise MetricError(f"the runs have different monitors: {told}; name one with -m")
        name, own = next(iter(monitors), ("val.loss", "min"))
        return name, mode or _mode(own)
    name = metric.replace("/", ".")
    if mode is None:
        known = {_mode(own) for monitor, own in monitors if monitor == name}
        if not known and name.rpartition(".")[2] == "loss":
            known = {"min"}
        if len(known) != 1:
            raise MetricError(f"is a lower or a higher {name} better? say --mode min or max")
        mode = known.pop()
    return name, mode


def _mode(text: str) -> Mode:
    return "max" if text == "max" else "min"


def is_comparable(value: Any) -> bool:
    """Whether a value can be ranked: it is there, and no NaN."""
    return value is not None and value == value  # NaN is not equal to itself
