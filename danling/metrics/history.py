"""The results of a run, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from danling.errors import MetricError, did_you_mean

__all__ = ["History", "is_better"]


Result = dict[str, Any]


def is_better(score: float | None, best: float | None, mode: Literal["min", "max"]) -> bool:
    """Whether a score beats the best: a missing, NaN, infinite or equal one never does.

    Example:
        >>> is_better(0.9, 0.8, "max"), is_better(0.9, 0.9, "max"), is_better(math.nan, None, "min")
        (True, False, False)
    """
    if score is None or not math.isfinite(score):
        return False
    return best is None or (score < best if mode == "min" else score > best)


class History:
    """The results, their scores, and which is best: adding one never looks at the others.

    Args:
        monitor: The tag of the score, as `"split/name"`.
        mode: Whether a lower (`"min"`) or a higher (`"max"`) score is better.
        strict: Whether a first result without the monitored value is an error.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], *, strict: bool) -> None:
        self.monitor = monitor
        self.mode = mode
        self.results: list[Result] = []
        self.scores: list[float | None] = []
        self._best: int | None = None
        self._strict = strict
        self._settled: list[Result] | None = None  # the last one without its cut part

    def add(self, result: Result, *, scored: bool = True) -> None:
        """Append a result, or complete the last one when it is of the same epoch and step."""
        last = self.results[-1] if self.results else None
        self._settled = None if scored else []
        if last is not None and all(last[key] == result[key] for key in ("epoch", "global_step")):
            if not scored:
                self._settled = [dict(last)]
            last.update(result)
        else:
            self.results.append(result)
            self.scores.append(None)
        if not scored:
            return
        score = self._score(self.results[-1])
        if (
            self._best == len(self.results) - 1
        ):  # the one that is completed was the best: judge it again
            self._best = self._index_of_best(self.scores[:-1])
        self.scores[-1] = score
        if is_better(score, self.best_score, self.mode):
            self._best = len(self.results) - 1

    def complete(self, values: Mapping[str, float]) -> None:
        """Add values by tag to the last result, which is judged again."""
        last = self.results[-1]
        for tag, value in values.items():
            split = split_of(tag, [*self._splits(last), "train"]) or tag.partition("/")[0]
            name = tag.removeprefix(f"{split}/")
            last[split] = {**last.get(split, {}), name: value}
        if self._settled is None:
            self.add({key: last[key] for key in ("epoch", "global_step")})

    @property
    def settled(self) -> list[Result]:
        """The results, without what an epoch has given that was cut: it may go on."""
        if self._settled is None:
            return self.results
        return [*self.results[:-1], *self._settled]

    def restore(self, results: list[Result]) -> None:
        """Take the results of a checkpoint; the scores follow the monitor of now."""
        self.results = [dict(result) for result in results]
        self.scores = [self._find(result) for result in self.results]
        self._best = self._index_of_best(self.scores)
        self._settled = None

    @property
    def best_score(self) -> float | None:
        return None if self._best is None else self.scores[self._best]

    @property
    def best(self) -> Result | None:
        return None if self._best is None else self.results[self._best]

    @property
    def is_best(self) -> bool:
        """Whether the latest result is the best so far."""
        return self._best is not None and self._best == len(self.results) - 1

    def _index_of_best(self, scores: list[float | None]) -> int | None:
        best = None
        for index, score in enumerate(scores):
            if is_better(score, None if best is None else scores[best], self.mode):
                best = index
        return best

    def _score(self, result: Result) -> float | None:
        score = self._find(result)
        if score is None and self._strict and self._is_judgeable(result):
            known = flatten(result)
            raise MetricError(
                f"the monitor {self.monitor!r} is not in the result: "
                f"{did_you_mean(self.monitor, known)} (there are: {', '.join(known)})"
            )
        self._strict = self._strict and score is None
        return score

    def _is_judgeable(self, result: Result) -> bool:
        """Whether the monitored value should be here: its split is, or something was evaluated."""
        splits = self._splits(result)
        return split_of(self.monitor, splits) is not None or len(splits) > 1

    def _find(self, result: Result) -> float | None:
        split = split_of(self.monitor, self._splits(result))
        if split is None:
            return None
        found = result[split].get(self.monitor.removeprefix(f"{split}/"))
        return None if found is None else float(found)

    def _splits(self, result: Result) -> list[str]:
        return [key for key, value in result.items() if isinstance(value, Mapping)]


def split_of(tag: str, splits: Iterable[str]) -> str | None:
    """The split that a tag is of: the longest one, since `"val/clean"` may be one; None for none.

    Example:
        >>> split_of("val/clean/loss", ["val", "val/clean"]), split_of("test/loss", ["val"])
        ('val/clean', None)
    """
    return max((split for split in splits if tag.startswith(f"{split}/")), key=len, default=None)


def flatten(result: Mapping[str, Any]) -> dict[str, float]:
    """The values of a result by their full tags."""
    return {
        f"{split}/{name}": value
        for split, values in result.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
