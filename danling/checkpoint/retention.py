"""Which of the numbered files stay, and what is left by a run that fails.

Why a numbered file was written stands in the file, in the metrics of its trailer. So what is kept
follows from the directory alone: a restart forgets nothing, and removes nothing that is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from danling.checkpoint.catalog import is_numbered
from danling.checkpoint.saving import Save
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError
from danling.metrics.history import is_better
from danling.runner.state import take_alone
from danling.triggers import Every

if TYPE_CHECKING:
    from danling.checkpoint.catalog import Entry
    from danling.runner.accelerate import AccelerateRunner

__all__ = [
    "REGULAR",
    "SCORE",
    "Ranking",
    "kept",
    "key_of",
    "number",
    "position",
    "preflight",
    "save_failure",
]


REGULAR = "kept as one of the last"
SCORE = "kept for its score"


class Ranking:
    """The best scores, the best one first; of equal ones the earlier is before the later.

    Args:
        size: How many; at least the best one.
        mode: Whether a lower (`"min"`) or a higher (`"max"`) score is better.

    Example:
        >>> ranking = Ranking(2, "max")
        >>> [ranking.add(score) for score in (0.5, float("nan"), 0.7, 0.4, 0.7, None)]
        [0, None, 0, None, 1, None]
        >>> ranking.best
        0.7
    """

    def __init__(self, size: int, mode: Literal["min", "max"] = "min") -> None:
        self.mode = mode
        self._size = max(size, 1)
        self._scores: list[float] = []

    @property
    def best(self) -> float | None:
        return self._scores[0] if self._scores else None

    def add(self, score: float | None) -> int | None:
        """The place of a score among the best, if it is one: NaN and infinities never are."""
        for place, other in enumerate([*self._scores, None][: self._size]):
            if score is not None and is_better(score, other, self.mode):
                self._scores.insert(place, float(score))
                del self._scores[self._size :]
                return place
        return None


def number(runner: AccelerateRunner, period: Every | None) -> str:
    """The name of a file that is of one epoch or one step."""
    by_step = runner.batch_index > 0 or (period is not None and period.unit == "steps")
    return f"step-{runner.global_step}" if by_step else f"epoch-{runner.epoch}"


def kept(entries: Sequence[Entry], *, last: int | None, best: int, mode: str) -> set[str]:
    """The numbered files that stay: the last regular ones, the best ones, and everybody else's.

    Of equal scores the earlier stays, as of equal results the earlier is the best.

    Args:
        entries: Of the directory, newest first.
        last: How many regular ones; None: all.
        best: How many of the best.
        mode: Whether a lower (`"min"`) or a higher (`"max"`) score is better.
    """
    numbered = [entry for entry in entries if is_numbered(entry.name)]
    sign = -1 if mode == "max" else 1
    scored = [entry for entry in numbered if SCORE in entry.metrics]
    scored.sort(key=lambda entry: (sign * entry.metrics[SCORE], entry.trailer.serial))
    stay = [entry for entry in numbered if not {REGULAR, SCORE} & entry.metrics.keys()]
    stay += [entry for entry in numbered if REGULAR in entry.metrics][:last]
    stay += scored[:best]
    return {entry.name for entry in stay}


def preflight(runner: AccelerateRunner) -> None:
    """Fail now where the first save would; the weights tell how much space it takes at least."""
    store, model = runner.checkpoints, runner.unwrapped_model
    is_first = not store.directory.is_dir() or store.is_empty()
    weights = model.state_dict().values() if model is not None and is_first else ()
    store.preflight(sum(getattr(weight, "nbytes", 0) for weight in weights) or None)


def save_failure(runner: AccelerateRunner, error: BaseException) -> None:
    """Keep what this process has when a run fails; a warning where that is not possible."""
    name = f"step-{runner.global_step}"
    try:
        contents = take_alone(runner)
        contents["run"]["crash"] = f"{type(error).__name__}: {error}"
        store = CheckpointStore(runner.dir / "crash", run=str(runner.uuid))
        Save.of(runner, (name,), contents).commit(World(), store)
    except CheckpointError as failure:
        runner.logger.warning("no crash/%s.pth is written: %s", name, failure)


def position(runner: AccelerateRunner) -> tuple[int, int, int]:
    """Where a run is."""
    return runner.epoch, runner.global_step, runner.batch_index


def key_of(result: Mapping[str, Any]) -> tuple[int, int]:
    """Which result this is."""
    return result["epoch"], result["global_step"]
