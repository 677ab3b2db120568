"""The choice of the numbered files that stay.

Why a numbered file was written stands in the file, in the metrics of its trailer. So what is kept
follows from the directory alone: a restart forgets nothing, and removes nothing that is not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from danling.checkpoint.catalog import is_numbered, series_of
from danling.metrics.history import is_better

if TYPE_CHECKING:
    from danling.checkpoint.catalog import Entry

__all__ = ["REGULAR", "SCORE", "Ranking", "kept"]


REGULAR = "kept as one of the last"
SCORE = "kept for its score"


class Ranking:
    """The best scores, the best one first; of equal ones the earlier is before the later.

    Args:
        size: The number of scores to keep, at least one; None: all of them.
        mode: Whether a lower (`"min"`) or a higher (`"max"`) score is better.

    Example:
        >>> ranking = Ranking(2, "max")
        >>> [ranking.add(score) for score in (0.5, float("nan"), 0.7, 0.4, 0.7, None)]
        [0, None, 0, None, 1, None]
        >>> ranking.best
        0.7
    """

    def __init__(self, size: int | None, mode: Literal["min", "max"] = "min") -> None:
        self.mode = mode
        self._size = None if size is None else max(size, 1)
        self._scores: list[float] = []

    @property
    def best(self) -> float | None:
        return self._scores[0] if self._scores else None

    def add(self, score: float | None) -> int | None:
        """The place of a score among the best, if it is one: NaN and infinities never are."""
        for place, other in enumerate([*self._scores, None][: self._size]):
            if score is not None and is_better(score, other, self.mode):
                self._scores.insert(place, float(score))
                if self._size is not None:
                    del self._scores[self._size :]
                return place
        return None


def kept(
    entries: Sequence[Entry], *, last: int | None, best: int | None, mode: str, series: str = ""
) -> set[str]:
    """The numbered files that stay: the last regular ones, the best ones, and everybody else's.

    Of equal scores the earlier stays, as of equal results the earlier is the best.

    Args:
        entries: The files of the directory, newest first.
        last: The number of regular ones to keep; None: all.
        best: The number of the best to keep; None: all.
        mode: Whether a lower (`"min"`) or a higher (`"max"`) score is better.
        series: The series that is looked through; all files of others stay.
    """
    others = {e.name for e in entries if is_numbered(e.name) and series_of(e.name) != series}
    numbered = [entry for entry in entries if series_of(entry.name) == series]
    sign = -1 if mode == "max" else 1
    scored = [entry for entry in numbered if SCORE in entry.metrics]
    scored.sort(key=lambda entry: (sign * entry.metrics[SCORE], entry.trailer.serial))
    stay = [entry for entry in numbered if not {REGULAR, SCORE} & entry.metrics.keys()]
    stay += [entry for entry in numbered if REGULAR in entry.metrics][:last]
    stay += scored[:best]
    return others | {entry.name for entry in stay}
