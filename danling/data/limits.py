"""The limits of a split: epochs that are limited, repeated, parts of a stream, or of nothing.

A limit holds for each process and epoch. A stream that is limited is read on from epoch to epoch,
and begins anew where it ends: its epochs are as long as the limit says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

from danling.data.sampling import Sharding
from danling.data.sources import Source
from danling.errors import DataError

__all__ = ["Amount", "Endless", "Nothing", "limited"]


PASS = 2**20  # no run has as many epochs


class Amount(NamedTuple):
    """The number of batches of a split that are read.

    Attributes:
        limit: A number of batches, or a share of them; None for all.
        most: A number that is never exceeded.
        repeats: Whether every epoch reads the batches of the first one.
    """

    limit: int | float | None = None
    most: int | None = None
    repeats: bool = False

    def of(self, batches: int | None, split: str) -> int | None:
        """The number of batches, of so many that there are; None where nobody knows.

        Raises:
            DataError: It is a share of an unknown number, or of too few.

        Example:
            >>> Amount(0.5).of(9, "val"), Amount(100).of(9, "val"), Amount(100).of(None, "val")
            (4, 9, 100)
        """
        limit = self.limit
        if isinstance(limit, float):
            limit = share(limit, batches, split)
        known = [number for number in (batches, limit, self.most) if number is not None]
        return min(known, default=None)


def share(limit: float, batches: int | None, split: str) -> int:
    """The number of batches that a share of them is, rounded down.

    Raises:
        DataError: Nobody knows of how many, or it is less than one.
    """
    if batches is None:
        raise DataError(
            f"{limit} of the batches of {split!r} is no number, as nobody knows how many there "
            "are: limit it to a number of batches"
        )
    number = int(batches * limit)
    if limit > 0 and batches > 0 and number == 0:
        raise DataError(
            f"{limit} of the {batches} batches of {split!r} is less than one: limit it to a number "
            "of batches, or take a larger share"
        )
    return number


def limited(batches: Iterator[Any], number: int | None) -> Iterator[Any]:
    """Yield at most so many batches; none is read after the last one."""
    return batches if number is None else islice(batches, number)


class Endless:
    """The batches of a source one pass after the other, from any of them on.

    Args:
        source: The source; a pass over it is one of its epochs.
        epoch: The epoch of the run whose batches these are alone; None where they are of all.
        most: The number of batches of a pass at most.

    Attributes:
        starts: The number of the first batch of each pass that was begun.
        known: The number of batches that were read: where later ones are, nobody knows.

    Example:
        >>> from danling.data.sources import StreamSource
        >>> source = StreamSource("abc", Sharding(1), keyed=False, replays=False, seed=0)
        >>> endless = Endless(source)
        >>> list(islice(endless.read(0), 5)), endless.starts
        (['a', 'b', 'c', 'a', 'b'], [0, 3])
    """

    def __init__(self, source: Source, epoch: int | None = None, most: int | None = None) -> None:
        self.epoch = epoch
        self.starts = [0]
        self.known = 0
        self._source = source
        self._most = most
        self._batches: Iterator[Any] | None = None

    def locate(self, number: int) -> tuple[int, int]:
        """The epoch of the source that a batch is in, and the number of items before it there."""
        index = bisect_right(self.starts, number) - 1
        return self._key(index), (number - self.starts[index]) * self._source.sharding.whole

    def _key(self, index: int) -> int:
        """The epoch of the source that is a pass: those of an epoch of the run are its own."""
        return index if self.epoch is None else self.epoch + index * PASS

    def _begin(self, number: int) -> Iterator[Any]:
        """The rest of the pass that a batch is in, from that batch on."""
        index = bisect_right(self.starts, number) - 1
        left = None if self._most is None else self._most - (number - self.starts[index])
        return limited(self._source.batches(*self.locate(number)), left)

    def take_up(self, starts: Sequence[int], known: int) -> None:
        """Go on where so many batches were read, of passes that began there."""
        self.starts, self.known, self._batches = list(starts), known, None

    def read(self, first: int) -> Iterator[Any]:
        """The batches from a number on; a stream that stands before it is only read on.

        Raises:
            DataError: A pass over the stream has no batch.
        """
        if self._batches is None or self.known > first:
            self.known = min(first, self.known)
            del self.starts[bisect_right(self.starts, self.known) :]
            self._batches = self._begin(self.known)
        while self.known < first:
            self._read_next(self._batches)
        while True:
            yield self._read_next(self._batches)

    def _read_next(self, batches: Iterator[Any]) -> Any:
        end = object()
        while (batch := next(batches, end)) is end:
            if self.known == self.starts[-1]:
                raise DataError(f"{self._source.name} has no batches")
            self.starts.append(self.known)
            self._batches = batches = self._begin(self.known)
        self.known += 1
        return batch


class Nothing:
    """The batches of a training without data: None, as often as it is asked for.

    Args:
        sharding: The sharding, with a size of one.
    """

    kind = "deterministic"
    name = "nothing"
    workers = 0
    is_length_exact = True
    is_length_fixed = True
    items = None

    def __init__(self, sharding: Sharding) -> None:
        self.sharding = sharding

    def items_in(self, epoch: int) -> None:
        """Return None: there is no end of it."""

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same for a position in an epoch to mean the same."""
        return {"sampler": self.name, "samples": None, "fingerprint": None}

    @property
    def doubts(self) -> list[str]:
        """No reasons: there is nothing to read."""
        return []

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is one way to read nothing."""

    def samples_at(self, epoch: int, offset: int) -> None:
        """Return None: there are no samples."""

    def batches(self, epoch: int, offset: int) -> Iterator[None]:
        """Yield None, again and again."""
        return repeat(None)
