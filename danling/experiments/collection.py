"""Many runs: filtered, sorted, compared, summarised over seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from danling.errors import MetricError
from danling.experiments.columns import column, differing_settings, known_columns
from danling.experiments.expression import Expression
from danling.experiments.ranking import Mode, is_comparable, ranked, score_of
from danling.experiments.reading import PassedOver, find_root, list_root, read_record
from danling.experiments.run import Run
from danling.experiments.selection import select, select_one
from danling.experiments.stored import History

if TYPE_CHECKING:
    from danling.experiments.seeds import SeedGroup

__all__ = ["Condition", "Runs", "runs"]


Condition = str | Callable[[Run], object]
"""An expression, or a function of a run."""


class Runs(Sequence[Run]):
    """A list of runs.

    Args:
        runs: The runs, in order.
        passed_over: The directories beside them that could not be read.

    Example:
        `good = danling.runs().filter("val.accuracy > .9").sort("-val.accuracy")`
    """

    def __init__(self, runs: Iterable[Run], passed_over: Iterable[PassedOver] = ()) -> None:
        self._runs = list(runs)
        self.passed_over = list(passed_over)
        """Entries of the folder that are no run, each with the reason."""

    @overload
    def __getitem__(self, index: int | str) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> Runs: ...

    def __getitem__(self, index: int | slice | str) -> Run | Runs:
        """A run by its place or by a selection word, and a slice as `Runs`.

        Raises:
            SelectionError: The word selects no run, or more than one.
        """
        if isinstance(index, slice):
            return Runs(self._runs[index], self.passed_over)
        if isinstance(index, str):
            return select_one(self, index)
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __repr__(self) -> str:
        shown = ", ".join(run.id for run in self._runs[:3]) + (", ..." if len(self) > 3 else "")
        return f"<{len(self)} runs: {shown}>" if self._runs else "<0 runs>"

    def filter(self, *conditions: Condition, **values: Any) -> Runs:
        """The runs that meet all conditions.

        Args:
            conditions: Expressions (see `Expression`) and functions of a run.
            values: Values that columns must have, `optim__lr=0.1` for `optim.lr`; of a list or
                tuple any of its items.

        Raises:
            ConfigError: An expression is wrong, or no run has a column of this name.
        """
        kept = self._runs
        for condition in conditions:
            test = self._test(condition)
            kept = [run for run in kept if test(run)]
        for key, wanted in values.items():
            value_of = column(self._runs, key.replace("__", "."))
            allowed = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
            kept = [run for run in kept if value_of(run) in allowed]
        return Runs(kept, self.passed_over)

    def _test(self, condition: Condition) -> Callable[[Run], object]:
        if callable(condition):
            return condition
        expression = Expression(condition)
        columns = {name: column(self._runs, name) for name in expression.names}
        return lambda run: expression.matches(lambda name: columns[name](run))

    def sort(self, *keys: str) -> Runs:
        """The runs in the order of columns, of `-optim.lr` the largest first.

        Runs without a value, or with NaN, come last.

        Raises:
            ConfigError: No run has a column of this name.
        """
        ordered = self._runs
        for key in reversed(keys):
            value_of = column(self._runs, key.removeprefix("-"))
            valued = [run for run in ordered if is_comparable(value_of(run))]
            rest = [run for run in ordered if run not in set(valued)]
            valued.sort(key=lambda run: _sort_key(value_of(run)), reverse=key.startswith("-"))
            ordered = valued + rest
        return Runs(ordered, self.passed_over)

    def best(self, metric: str | None = None, mode: Mode | None = None) -> Run | None:
        """The best run; of equals the earliest, and None where no run has a score.

        Args:
            metric: A value of the best result, such as `val.accuracy`; the runs' monitor if None.
            mode: Whether a lower or a higher value is better; that of the runs if None.

        Raises:
            MetricError: The runs have different monitors, or the mode is not known.
        """
        return next(iter(ranked(self._runs, metric, mode)), None)

    def ranked(self, metric: str | None = None, mode: Mode | None = None) -> Runs:
        """The runs that have a score, the best first; see `best`."""
        return Runs(ranked(self._runs, metric, mode), self.passed_over)

    def score_of(self, metric: str | None = None, mode: Mode | None = None) -> tuple[str, Mode]:
        """The metric and the mode by which these runs are ranked.

        Raises:
            MetricError: The runs have different monitors, or the mode is not known.
        """
        return score_of(self._runs, metric, mode)

    def select(self, *words: str) -> Runs:
        """The runs that any of some selection words selects; see `danling.experiments.select`.

        Raises:
            SelectionError: A word selects no run, or is the beginning of several ids.
        """
        return Runs(select(self._runs, words), self.passed_over)

    def over_seeds(self) -> list[SeedGroup[Run]]:
        """The runs by code and configuration, in which runs that differ in their seed are one."""
        from danling.experiments.seeds import over_seeds

        return over_seeds(self)

    def compare(self, *keys: str) -> list[dict[str, Any]]:
        """One row per key that differs: the key, and its value in each run under the run's id.

        Args:
            keys: Columns to compare; all keys of the configuration that differ, and the scores, if
                none is given.
        """
        names = list(keys) or [*differing_settings(self._runs), *self._score_names()]
        columns = {name: column(self._runs, name) for name in names}
        return [
            {"key": name, **{run.id: value_of(run) for run in self._runs}}
            for name, value_of in columns.items()
        ]

    def _score_names(self) -> list[str]:
        return list(dict.fromkeys(run.monitor for run in self._runs if run.best is not None))

    def columns(self) -> list[str]:
        """The names of all columns that these runs have."""
        return known_columns(self._runs)

    def to_dicts(self, *keys: str) -> list[dict[str, Any]]:
        """A mapping per run, from column to value.

        Args:
            keys: The columns; if none is given the fields that every run has but its size, the
                keys of the configuration and the values of the best result.
        """
        names = list(keys) or [
            name for name in self.columns() if not name.startswith(("best.", "latest.", "size"))
        ]
        columns = {name: column(self._runs, name) for name in names}
        return [{name: value_of(run) for name, value_of in columns.items()} for run in self._runs]

    def to_pandas(self, *keys: str) -> Any:
        """The rows of `to_dicts` as a pandas.DataFrame, indexed by id.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        names = list(dict.fromkeys(["id", *keys])) if keys else []
        return pandas.DataFrame(self.to_dicts(*names)).set_index("id")

    def history(self, tag: str) -> dict[str, History]:
        """The curve of each run that has it, under the run's id.

        Raises:
            MetricError: No run has the curve.
        """
        found: dict[str, History] = {}
        problem: MetricError | None = None
        for run in self._runs:
            try:
                found[run.id] = run.history(tag)
            except MetricError as error:
                problem = problem or error
        if not found and problem is not None:
            raise problem
        return found

    def _repr_html_(self) -> str:
        from danling.experiments.reports.html import runs_fragment

        return runs_fragment(self)


def runs(root: str | os.PathLike[str] | None = None) -> Runs:
    """The runs in a folder, the newest first; `passed_over` has what could not be read.

    Of a run only run.json is read at once, and neither torch nor any training code is loaded.

    Args:
        root: The folder of the runs; if None that of `DANLING_ROOT`, else the nearest
            `experiments` found upwards from here.

    Raises:
        RunDirectoryError: There is no such folder, or it cannot be read.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> runs(folder)
        <0 runs>
    """
    directories, passed_over = list_root(find_root(root))
    found: list[Run] = []
    for directory in directories:
        record = read_record(directory)
        if isinstance(record, PassedOver):
            passed_over.append(record)
        else:
            found.append(Run(directory, record))
    found.sort(key=_age, reverse=True)
    passed_over = [entry for entry in passed_over if not _is_ours(entry.path)]
    return Runs(found, sorted(passed_over, key=lambda entry: entry.path))


def _age(run: Run) -> tuple[str, bool]:
    # of a run and its copy, the one that still has its own name is the original
    return str(run.record["created"]), run.path.name.endswith(run.id)


def _is_ours(path: Path) -> bool:
    """Whether this is the band over seeds that the TensorBoard callback writes."""
    return "-seeds-" in path.name and next(path.glob("events.out.tfevents.*"), None) is not None


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts, and texts that are numbers by their size."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, str(value)
