"""The choice of the samples of a batch: the order of an epoch, and each rank's share of it.

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
from torch import Tensor
from torch.utils.data import Dataset

from danling.data.generators import OwnGenerators
from danling.data.permutation import draw, permute
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
STORED = 65536  # indices of an order that is stored: half a megabyte


class Order(Protocol):
    """The items of an epoch, in order."""

    name: str
    is_length_exact: bool
    is_length_fixed: bool

    @property
    def length(self) -> int | None:
        """The number of items of an epoch; None where the sampler does not tell."""

    def length_in(self, epoch: int) -> int | None:
        """The length of one epoch, where epochs have different lengths."""

    def items(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The items of an epoch from number `start` on."""


class Sequential:
    """The indices 0, 1, ... in every epoch."""

    name = "sequential"
    is_length_exact = True
    is_length_fixed = True

    def __init__(self, length: int) -> None:
        self.length = length

    def length_in(self, epoch: int) -> int:
        """The number of indices, the same in every epoch."""
        return self.length

    def items(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The indices of an epoch from number `start` on."""
        return iter(range(start, self.length))


class Shuffled:
    """A new permutation in every epoch, that is chosen by (seed, epoch).

    Up to 65536 indices are shuffled as torch does it, which makes all orders equally likely, and
    are stored. In a longer epoch index number i is computed when it is asked for, by a keyed
    bijection: it takes no memory, and no time to begin anywhere.

    Args:
        population: The number of samples there are.
        seed: The seed of the order.
        length: The number of indices of an epoch; by default each sample once. More than
            `population` go through further permutations.
        replacement: Whether every index is drawn independently of the others.

    Attributes:
        is_stored: Whether the indices of an epoch are stored. It is set for a run that was begun
            when orders of all lengths were.

    Example:
        >>> order = Shuffled(5, seed=0)
        >>> first = list(order.items(epoch=0))
        >>> sorted(first)
        [0, 1, 2, 3, 4]
        >>> list(order.items(epoch=0, start=3)) == first[3:]
        True
        >>> large = Shuffled(10**12, seed=0)
        >>> len(set(islice(large.items(epoch=0, start=10**11), 1000)))
        1000
    """

    is_length_exact = True
    is_length_fixed = True

    def __init__(
        self, population: int, seed: int, length: int | None = None, replacement: bool = False
    ) -> None:
        self.population = population
        self.length = population if length is None else length
        self.name = "shuffled with replacement" if replacement else "shuffled"
        self.is_stored = max(population, self.length) <= STORED
        self._seed = seed
        self._replacement = replacement

    def length_in(self, epoch: int) -> int:
        """The number of indices, the same in every epoch."""
        return self.length

    def items(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The indices of an epoch from number `start` on."""
        key = derive(self._seed, "order", epoch)
        stored = self._stored(key) if self.is_stored else None
        for low in range(start, self.length, CHUNK):
            high = min(low + CHUNK, self.length)
            chunk = self._computed(key, low, high) if stored is None else stored[low:high]
            yield from chunk.tolist()

    def _stored(self, key: int) -> Tensor:
        generator = torch.Generator().manual_seed(key)
        if self._replacement:
            return torch.randint(self.population, (self.length,), generator=generator)
        rounds = -(-self.length // self.population) if self.population else 0
        drawn = [torch.randperm(self.population, generator=generator) for _ in range(rounds)]
        return torch.cat(drawn or [torch.empty(0, dtype=torch.int64)])

    def _computed(self, key: int, low: int, high: int) -> Tensor:
        if self._replacement:
            return draw(torch.arange(low, high), self.population, key)
        parts = []
        for number in range(low // self.population, -(-high // self.population)):
            begin = number * self.population
            part = torch.arange(max(low, begin), min(high, begin + self.population)) - begin
            parts.append(permute(part, self.population, derive(key, "permutation", number)))
        return torch.cat(parts)


class Sampled:
    """The items of a sampler or batch sampler of the user, under generators of its own.

    It is read under generators seeded with (seed, epoch), which are put back whenever it is not
    being read, and so are generators of its own; `set_epoch` is called where it exists. A few
    thousand items are read at a time: an endless sampler is fine.

    Attributes:
        is_length_exact: Whether the length is one to rely on, as it is for samplers of torch. What
            others claim is shown, and their items are read to the end.
        is_length_fixed: Whether it is told no epoch, and has one length.

    Raises:
        DataError: The sampler shards by itself, and the samples would be sharded twice.
    """

    def __init__(self, sampler: Iterable[Any], seed: int) -> None:
        self.name = type(sampler).__qualname__
        self.is_length_exact = is_of_torch(sampler)
        parts = (sampler, getattr(sampler, "sampler", None))
        self.is_length_fixed = not any(hasattr(part, "set_epoch") for part in parts)
        self._sampler = sampler
        self._seed = seed
        if getattr(sampler, "num_replicas", 1) > 1:
            raise DataError(
                f"{self.name} takes only its own rank's samples, and the runner takes each rank's "
                "share of what it yields: hand over a sampler of all samples"
            )

    @property
    def length(self) -> int | None:
        """The length of the sampler by `len`."""
        return length_of(self._sampler)

    def length_in(self, epoch: int) -> int | None:
        """The length of the sampler by `len`, after it was told the epoch."""
        with isolated_rng(devices=False):
            self._enter(epoch)
            return self.length

    def items(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The items that the sampler yields in an epoch, from number `start` on."""
        with isolated_rng(devices=False):
            self._enter(epoch)
            iterator = islice(iter(self._sampler), start, None)
            chunk, streams = list(islice(iterator, CHUNK)), rng_state(devices=False)
        while chunk:
            yield from chunk
            with isolated_rng(devices=False):
                set_rng_state(streams)
                chunk, streams = list(islice(iterator, CHUNK)), rng_state(devices=False)

    def _enter(self, epoch: int) -> None:
        """Seed all generators, and tell the sampler the epoch."""
        seed_streams(derive(self._seed, "sampler", epoch))
        for part in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch(part, epoch)
        own = OwnGenerators(self._sampler, besides=(Dataset,))
        own.seed(derive(self._seed, "generator", epoch))


@dataclass(frozen=True)
class Sharding:
    """The rule by which the items of an epoch become batches on one of the ranks.

    Rank r takes the r-th of `world_size` equal parts of every global batch. What is left for the
    last global batch is divided as evenly as it goes. In training it is first padded from the
    start of the epoch's order, so that all ranks have equally many batches: at most
    `world_size - 1` items are seen twice. In evaluation every item is seen once, and a rank may
    get fewer batches.

    Args:
        size: The number of items of a batch on one rank.
        rank: The rank of this process.
        world_size: The number of processes.
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
        """The number of items of a whole global batch."""
        return self.size * self.world_size

    def count(self, items: int, rank: int | None = None) -> int:
        """The number of batches that a rank, by default this one, gets from that many items."""
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
            position: The place in the epoch's order where `items` begins.
            restart: A function that gives the epoch's order from its start, for padding.
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
    """The length by `len`, or None where there is none."""
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return None
