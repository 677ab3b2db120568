"""Several splits that are read together: side by side, or one after the other.

The modes are those of Lightning's `CombinedLoader`:

| mode | a batch | ends |
| --- | --- | --- |
| min_size | one of each split | with the split that ends first |
| max_size | one of each split, None for one that has ended | with the split that ends last |
| max_size_cycle | one of each split; one that has ended begins anew | with the one that ends last |
| sequential | one of one split: the splits follow one another | with the last split |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from danling.data.limits import limited
from danling.data.loader import Loader
from danling.errors import DataError, did_you_mean

__all__ = ["Combined", "Mode", "Reading", "check_mode", "reading_of"]


Mode = Literal["min_size", "max_size", "max_size_cycle", "sequential"]


def check_mode(mode: str) -> None:
    """See that several splits can be read in a mode.

    Raises:
        DataError: There is no such mode.
    """
    if mode not in get_args(Mode):
        raise DataError(f"mode={mode!r}: {did_you_mean(mode, get_args(Mode))}")


@dataclass(slots=True)
class Reading:
    """The batches of an epoch that are left, of one split or of several.

    Attributes:
        batches: The batches.
        done: The number of batches of the epoch that were read before.
        length: The number of batches of the epoch, those before among them; None if unknown.
        is_exact: Whether the epoch ends where its length says; else it ends where the data does.
        places: A function that gives the number of batches used of each split, for a number of
            batches of these that were used.
        loader: The loader, where it is of one split.
    """

    batches: Iterator[Any]
    done: int
    length: int | None
    is_exact: bool
    places: Callable[[int], dict[str, int]]
    loader: Loader | None = None


def reading_of(split: str, loader: Loader, epoch: int, done: int) -> Reading:
    """The batches of one split that are left after so many of them."""
    return Reading(
        loader.iterate(epoch, done),
        done,
        loader.batches_in(epoch),
        loader.is_length_exact,
        lambda used: {split: done + used},
        loader,
    )


class Combined:
    """Several loaders that are read together.

    Args:
        loaders: The loaders by the names that their batches have.
        mode: The way in which they are read, as the table of the module says.
        most: The number of batches of an epoch at most.

    Raises:
        DataError: There is no such mode.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], mode: str = "min_size", most: int | None = None
    ) -> None:
        check_mode(mode)
        self._loaders = dict(loaders)
        self._mode = mode
        self._most = most

    @property
    def is_length_exact(self) -> bool:
        """Whether an epoch ends where its length says; else it ends where the data does."""
        return all(loader.is_length_exact for loader in self._loaders.values())

    @property
    def length(self) -> int | None:
        """The number of batches of a whole epoch; None when nobody knows."""
        return self._count([loader.length for loader in self._loaders.values()], self._most)

    batch_size = None
    """The loaders make their own parts of a batch."""

    @property
    def is_length_fixed(self) -> bool:
        """Whether all epochs are as long as one another."""
        return all(loader.is_length_fixed for loader in self._loaders.values())

    def batches_in(self, epoch: int) -> int | None:
        """The number of batches of this epoch; None when nobody knows."""
        lengths = [loader.batches_in(epoch) for loader in self._loaders.values()]
        return self._count(lengths, self._most)

    def done(self, places: Mapping[str, int]) -> int:
        """The number of batches that were read, of so many of each split."""
        begun = [places.get(loader.split, 0) for loader in self._loaders.values()]
        return sum(begun) if self._mode == "sequential" else max(begun)

    def _count(self, lengths: list[int | None], most: int | None) -> int | None:
        """The number of batches that so many of each split make."""
        known = [max(length, 0) for length in lengths if length is not None]
        if len(known) < len(lengths):
            return most
        if self._mode == "sequential":
            count = sum(known)
        else:
            count = min(known) if self._mode == "min_size" else max(known)
        return count if most is None else min(count, most)

    def read(self, epoch: int, places: Mapping[str, int]) -> Reading:
        """The batches of an epoch that are left.

        Args:
            epoch: The epoch.
            places: The number of batches of each split that were used in it before.
        """
        begun = {name: places.get(part.split, 0) for name, part in self._loaders.items()}
        done = self.done(places)
        lengths = {name: loader.batches_in(epoch) for name, loader in self._loaders.items()}
        left = [None if n is None else n - begun[name] for name, n in lengths.items()]
        most = None if self._most is None else max(self._most - done, 0)
        number = self._count(left, most)
        turn = _Turn(self._loaders, self._mode, epoch, begun)
        length = None if number is None else done + number
        batches = limited(turn.batches(), most)
        return Reading(batches, done, length, self.is_length_exact, turn.places)


class _Turn:
    """One reading of several loaders: where each of them is after a number of batches.

    Args:
        loaders: The loaders by the names of their batches.
        mode: The way in which they are read.
        epoch: The epoch.
        begun: The number of batches of each that were used before.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], mode: str, epoch: int, begun: Mapping[str, int]
    ) -> None:
        self._loaders = loaders
        self._mode = mode
        self._epoch = epoch
        self._begun = begun
        self._ended: dict[str, int] = {}  # the batches that were left of one that has ended

    def places(self, used: int) -> dict[str, int]:
        """The number of batches used of each split, after so many batches of this reading."""
        places = {}
        for name, begun in self._begun.items():
            own = used if self._mode == "max_size_cycle" else min(used, self._left(name, used))
            places[self._loaders[name].split] = begun + own
            if self._mode == "sequential":
                used -= own
        return places

    def _left(self, name: str, used: int) -> int:
        """The batches that were left of one; as many as are asked for where it goes on."""
        return self._ended.get(name, used)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The batches by name."""
        return self._one_after_another() if self._mode == "sequential" else self._side_by_side()

    def _one_after_another(self) -> Iterator[dict[str, Any]]:
        for name, loader in self._loaders.items():
            number = 0
            for batch in loader.iterate(self._epoch, self._begun[name]):
                number += 1
                yield {name: batch}
            self._ended[name] = number

    def _side_by_side(self) -> Iterator[dict[str, Any]]:
        cycles, end = self._mode == "max_size_cycle", object()
        iterators = {
            name: loader.iterate(self._epoch, self._begun[name], cycles=cycles)
            for name, loader in self._loaders.items()
        }
        number = 0
        while True:
            batch = {name: next(iterator, end) for name, iterator in iterators.items()}
            for name in batch:
                if batch[name] is end or (cycles and self._loaders[name].begins_anew):
                    self._ended.setdefault(name, number)
            if len(self._ended) == len(batch) or (self._ended and self._mode == "min_size"):
                return
            number += 1
            yield {name: None if part is end else part for name, part in batch.items()}
