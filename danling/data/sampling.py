"""Which samples a batch is made of: the order of an epoch, and each rank's share of it.

An order is a pure function of (seed, epoch), the same on every rank, and made of items: a sample's
index, or a whole batch of indices where the user's batch sampler makes the batches. Rank r takes
its slice of every global batch, so that positions in the order mean the same for any number of
processes, and continuing somewhere in an epoch needs nothing but a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import Dataset

from danling.data.randomness import own_generators, seed_own
from danling.errors import DataError
from danling.seed import derive, isolated_rng, rng_state, seed_streams, set_rng_state

__all__ = [
    "Order",
    "Sampled",
    "Sequential",
    "Sharding",
    "Shuffled",
    "is_of_torch",
    "length_of",
    "order_of",
    "set_epoch",
]


T = TypeVar("T")
CHUNK = 4096  # items whose python integers exist at a time


class Order(Protocol):
    """The items of an epoch, in order."""

    name: str

    @property
    def length(self) -> int | None:
        """Items of an epoch; None where the sampler does not tell."""

    def items(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The items of an epoch from number `start` on."""


class Sequential:
    """The indices 0, 1, ... in every epoch."""

    name = "sequential"

    def __init__(self, length: int) -> None:
        self.length = length

    def items(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The indices of an epoch from number `start` on."""
        return iter(range(start, self.length))


class Shuffled:
    """A new permutation in every epoch, drawn from a generator that is seeded with (seed, epoch).

    Args:
        population: How many samples there are.
        seed: Of the order.
        length: Indices of an epoch; by default each sample once. More than `population` go through
            further permutations.
        replacement: Draw every index independently of the others.

    Example:
        >>> order = Shuffled(5, seed=0)
        >>> first = list(order.items(epoch=0))
        >>> sorted(first)
        [0, 1, 2, 3, 4]
        >>> list(order.items(epoch=0, start=3)) == first[3:]
        True
    """

    def __init__(
        self, population: int, seed: int, length: int | None = None, replacement: bool = False
    ) -> None:
        self.population = population
        self.length = population if length is None else length
        self.name = "shuffled with replacement" if replacement else "shuffled"
        self._seed = seed
        self._replacement = replacement

    def items(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The indices of an epoch from number `start` on."""
        generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
        if self._replacement:
            drawn = torch.randint(self.population, (self.length,), generator=generator)
        else:
            rounds = -(-self.length // self.population) if self.population else 0
            drawn = torch.cat(
                [torch.randperm(self.population, generator=generator) for _ in range(rounds)]
                or [torch.empty(0, dtype=torch.int64)]
            )
        for low in range(start, self.length, CHUNK):
            yield from drawn[low : min(low + CHUNK, self.length)].tolist()


class Sampled:
    """What a sampler or batch sampler of the user yields, under random streams of its own.

    It is read under generators seeded with (seed, epoch), which are put back whenever it is not
    being read, and so are generators of its own; `set_epoch` is called where it exists. A few
    thousand items are read at a time: an endless sampler is fine.

    Raises:
        DataError: The sampler shards by itself, and the samples would be sharded twice.
    """

    def __init__(self, sampler: Iterable[Any], seed: int) -> None:
        self.name = type(sampler).__qualname__
        self._sampler = sampler
        self._seed = seed
        if getattr(sampler, "num_replicas", 1) > 1:
            raise DataError(
                f"{self.name} takes only its own rank's samples, and the runner takes each rank's "
                "share of what it yields: hand over a sampler of all samples"
            )

    @property
    def length(self) -> int | None:
        """What `len` says of the sampler."""
        return length_of(self._sampler)

    def items(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """What the sampler yields in an epoch, from number `start` on."""
        with isolated_rng(devices=False):
            seed_streams(derive(self._seed, "sampler", epoch))
            for part in (self._sampler, getattr(self._sampler, "sampler", None)):
                set_epoch(part, epoch)
            own = own_generators(self._sampler, besides=(Dataset,))
            seed_own(own, derive(self._seed, "generator", epoch))
            iterator = islice(iter(self._sampler), start, None)
            chunk, streams = list(islice(iterator, CHUNK)), rng_state(devices=False)
        while chunk:
            yield from chunk
            with isolated_rng(devices=False):
                set_rng_state(streams)
                chunk, streams = list(islice(iterator, CHUNK)), rng_state(devices=False)


@dataclass(frozen=True)
class Sharding:
    """How the items of an epoch become batches on one of the ranks.

    Rank r takes the r-th of `world_size` equal parts of every global batch. What is left for the
    last global batch is divided as evenly as it goes. In training it is first padded from the
    start of the epoch's order, so that all ranks have equally many batches: at most
    `world_size - 1` items are seen twice. In evaluation every item is seen once, and a rank may
    get fewer batches.

    Args:
        size: Items of a batch on one rank.
        rank: Of this process.
        world_size: How many processes there are.
        training: Whether the last global batch is padded.
        drop_last: Whether a last global batch that is not whole is left out.

    Example:
        >>> parts = [Sharding(2, rank, 2, training=False) for rank in range(2)]
        >>> [[batch for _, batch in part.batches(iter(range(7)))] for part in parts]
        [[[0, 1], [4]], [[2, 3], [5, 6]]]
    """

    size: int
    rank: int = 0
    world_size: int = 1
    training: bool = True
    drop_last: bool = False

    @property
    def whole(self) -> int:
        """Items of a whole global batch."""
        return self.size * self.world_size

    def count(self, items: int, rank: int | None = None) -> int:
        """How many batches a rank, by default this one, gets from that many items."""
        full, rest = divmod(max(items, 0), self.whole)
        if rest == 0 or self.drop_last:
            return full
        low, high = self._part(rest, self.rank if rank is None else rank)
        return full + (1 if self.training else int(high > low))

    def batches(
        self,
        items: Iterator[T],
        position: int = 0,
        restart: Callable[[], Iterator[T]] | None = None,
    ) -> Iterator[tuple[int, list[T]]]:
        """This rank's batches, each with the position of its first item in the global order.

        Args:
            items: The order from `position` on.
            position: Where in the epoch's order `items` begins.
            restart: The epoch's order from its start, for padding.
        """
        whole, low, high = self.whole, *self._part(self.whole, self.rank)
        while group := list(islice(items, whole)):
            if len(group) < whole:
                if self.drop_last:
                    return
                if self.training and restart is not None:
                    group += islice(cycle(restart()), -len(group) % self.world_size)
                low, high = self._part(len(group), self.rank)
            if high > low:
                yield position + low, group[low:high]
            position += whole

    def positions(self, start: int, items: int | None) -> range:
        """This rank's part of the global batch that begins at `start`, of an epoch of `items`."""
        left = self.whole if items is None else min(self.whole, max(items - start, 0))
        if self.training:
            left += -left % self.world_size
        low, high = self._part(left, self.rank)
        return range(start + low, start + high)

    def _part(self, items: int, rank: int) -> tuple[int, int]:
        return items * rank // self.world_size, items * (rank + 1) // self.world_size


def order_of(sampler: Any, seed: int) -> Order:
    """The order that stands for a sampler: torch's own become pure functions of (seed, epoch)."""
    kind = type(sampler).__name__ if is_of_torch(sampler) else ""
    if kind == "RandomSampler":
        population = len(sampler.data_source)
        return Shuffled(population, seed, sampler.num_samples, sampler.replacement)
    if kind == "SequentialSampler":
        return Sequential(len(sampler.data_source))
    if kind in ("DistributedSampler", "StatefulDistributedSampler"):
        population = len(sampler.dataset)
        return Shuffled(population, seed) if sampler.shuffle else Sequential(population)
    return Sampled(sampler, seed)


def is_of_torch(thing: object) -> bool:
    """Whether the type itself, and not only a base of it, is of torch or torchdata."""
    return type(thing).__module__.partition(".")[0] in ("torch", "torchdata")


def set_epoch(part: Any, epoch: int) -> None:
    """Tell a sampler, dataset or loader the epoch, if it wants to know."""
    tell = getattr(part, "set_epoch", None)
    if callable(tell):
        tell(epoch)


def length_of(thing: Any) -> int | None:
    """What `len` says, or None where it says nothing."""
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return None
