"""The open objects of a training, the counters of what was completed, and the time that it took.

A training, an epoch and a batch are objects that live from their first hook to their last: what
belongs to one of them ends with it, and an iterator that outlived its epoch is told by comparing
the object that it began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

if TYPE_CHECKING:
    from danling.data.combined import Reading
    from danling.data.loader import Loader
    from danling.optimization.windows import Window
    from danling.runner.steps import Read
    from danling.seed import Flags

__all__ = [
    "DISPLACED",
    "OPEN",
    "Clock",
    "Counters",
    "OpenBatch",
    "OpenEpoch",
    "OpenTraining",
    "put_back_streams",
    "set_streams_aside",
]


@dataclass(slots=True)
class Counters:
    """The counters of a run: each counts what is completed, never what is under way.

    Attributes:
        epoch: The number of epochs completed.
        global_step: The number of optimizer steps completed.
        batch_index: The number of batches completed in this epoch.
    """

    epoch: int = 0
    global_step: int = 0
    batch_index: int = 0


@dataclass(slots=True)
class Clock:
    """The training time in seconds: it survives a resume, and stands still between trainings."""

    before: float = 0.0
    _started: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Let it run; a monotonic clock, since wall clocks jump."""
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        """Let it stand still."""
        self.before, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        """The training time until now."""
        return self.before + (0.0 if self._started is None else time.monotonic() - self._started)


@dataclass(slots=True, eq=False, weakref_slot=True)
class OpenTraining:
    """A training, from `on_train_start` to `on_train_end`.

    Attributes:
        total_steps: The optimizer steps of the whole training, as they were when the epoch began.
        is_leaving: Whether a `break` out of the epochs ends it.
        at_safe_point: Whether a step was completed, and `on_checkpoint` is still to fire for it.
        has_gradients: Whether an accumulation window is open.
        busy: The place of the loop between two safe points, in words; None at one.
        failed: Whether the run ended within it by an error.
        deferred: The saves that wait for the next safe point, by their names.
        streams: The random streams, set aside while another runner seeds and draws.
        flags: The flags of torch that it computes under.
    """

    total_steps: int | None = None
    is_leaving: bool = False
    at_safe_point: bool = False
    has_gradients: bool = False
    busy: str | None = None
    failed: bool = False
    deferred: dict[tuple[str, ...], Callable[[], object]] = field(default_factory=dict)
    streams: dict[str, Any] | None = None
    flags: Flags | None = None


class OpenEpoch:
    """An epoch, from `on_epoch_start` to `on_epoch_end`.

    Args:
        places: The number of batches of each split that were used in it before a resume.

    Attributes:
        length: The number of batches of what is iterated, where that is known.
        iterator: The identity of the iterator of batches that is in use.
        ended_by: Whether the last batch or a `break` ended the batches; None while they go on.
        results: The results of evaluations at its end, by split.
        within: The last result that was added within it, if there is one.
        loader: The loader of the split that is iterated, where it may know its samples.
        read: The samples of the batches that are iterated, where the loader knows them.

    Example:
        >>> from danling.data.combined import Reading
        >>> def reading(split, done):
        ...     return Reading(iter(()), done, None, False, lambda used: {split: done + used})
        >>> epoch = OpenEpoch({})
        >>> epoch.begin(reading("warm", done=0), batch_index=0)
        >>> epoch.begin(reading("train", done=0), batch_index=3)
        >>> epoch.places(batch_index=5)
        {'warm': 3, 'train': 2}
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self.length: int | None = None
        self.iterator: object = None
        self.ended_by: Literal["last batch", "break"] | None = None
        self.results: dict[str, dict[str, float]] = {}
        self.within: dict[str, Any] | None = None
        self.loader: Loader | None = None
        self.read: Read | None = None
        self._before = dict(places)
        self._reading: Reading | None = None
        self._offset = 0  # batches of the epoch that were of other splits

    @property
    def is_under_way(self) -> bool:
        """Whether its batches have begun, and not ended."""
        return self.iterator is not None and self.ended_by is None

    def begin(self, reading: Reading, batch_index: int) -> None:
        """Begin to iterate what is left of a split, or of several together."""
        self._before, self._reading = self.places(batch_index), reading
        self.ended_by, self.length, loader = None, reading.length, reading.loader
        self.loader = loader if loader is not None and loader.tells_samples else None
        self._offset = batch_index - reading.done

    def place(self, batch_index: int) -> int:
        """The number of batches used of what is iterated."""
        return batch_index - self._offset

    def is_last(self, batch_index: int) -> bool:
        """Whether the batch in hand is known to be the last one of the split."""
        return self.place(batch_index) + 1 == self.length

    def fraction(self, batch_index: int) -> float:
        """The share of the split that is used; less than 1, which is the end of the epoch."""
        length = self.length
        return min(batch_index - self._offset, length - 1) / length if length else 0.0

    def places(self, batch_index: int) -> dict[str, int]:
        """The number of batches used of each split."""
        if self._reading is None:
            return self._before
        used = self.place(batch_index) - self._reading.done
        return self._before | self._reading.places(used)


@dataclass(slots=True, eq=False)
class OpenBatch:
    """A batch in hand, from `on_batch_start` to `on_batch_end`.

    Attributes:
        batch: The batch that the loader gave.
        window: The place of the batch in its accumulation window.
        output: The output that the train step returned.
        stepped: Whether the optimizer has moved with it.
        has_gradients: Whether it has left gradients that no step has used.
    """

    batch: Any
    window: Window
    output: Any = None
    stepped: bool = False
    has_gradients: bool = False


OPEN: WeakSet[OpenTraining] = WeakSet()
"""The trainings that are open in this process."""

DISPLACED: WeakSet[OpenTraining] = WeakSet()
"""The open trainings whose random streams are set aside."""


def set_streams_aside() -> None:
    """Keep the random streams of the trainings that are open: another runner seeds and draws."""
    from danling.seed import rng_state  # the rest of this module needs no torch

    for training in OPEN:
        if training.streams is None:
            training.streams = rng_state()
            DISPLACED.add(training)


def put_back_streams(training: OpenTraining) -> None:
    """Go on with the random streams of a training, whatever another runner drew meanwhile."""
    from danling.seed import set_rng_state

    if training not in DISPLACED:
        return
    DISPLACED.discard(training)
    streams, training.streams = training.streams, None
    set_rng_state(streams or {})
    if training.flags is not None:
        training.flags.enter()
