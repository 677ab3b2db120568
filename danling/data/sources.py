"""The sources of batches: a dataset that is read by index, a list of batches, or a stream.

A source gives this rank's batches of an epoch from any item of its global order on. An item is a
sample where we make the batches, and a batch where the user does.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, default_collate, default_convert

from danling.data.generators import own_generators
from danling.data.randomness import Treatment, keyed_rng, purity, watched
from danling.data.readers import Collate, IndexedReader, WorkerInit, as_it_is
from danling.data.sampling import Order, Sharding, Shuffled, length_of, set_epoch
from danling.errors import DataError
from danling.seed import derive, generator_state

__all__ = ["IndexedSource", "ListSource", "Source", "StreamSource"]


class Source(Protocol):
    """The source of a loader's batches, as the loader sees it."""

    kind: str
    name: str
    sharding: Sharding
    workers: int
    is_length_exact: bool
    is_length_fixed: bool

    @property
    def items(self) -> int | None:
        """The number of items of an epoch over all ranks; None when nobody knows."""

    def items_in(self, epoch: int) -> int | None:
        """The number of items of one epoch, where epochs have different lengths."""

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same for a position in an epoch to mean the same."""

    @property
    def doubts(self) -> list[str]:
        """Why the batches from the middle of an epoch on may differ from those of a whole epoch."""

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Read in the way in which the run read that saved this identity."""

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from item `offset` of the global order on."""

    def samples_at(self, epoch: int, offset: int) -> int | None:
        """The number of samples in this rank's batch of the global batch at an offset."""


class SampleCounts:
    """The number of samples of each batch, from when it is asked for until well after its use.

    Args:
        step: The number of items of a global batch.
        ahead: The number of batches that may be asked for ahead of the one that is used.
    """

    def __init__(self, step: int, ahead: int = 0) -> None:
        self._by_offset: dict[tuple[int, int], int] = {}
        self._held = step * (ahead + HELD_BATCHES)

    def add(self, epoch: int, offset: int, samples: int) -> None:
        """Note the samples of the global batch at an offset."""
        self._by_offset[epoch, offset] = samples
        self._by_offset.pop((epoch, offset - self._held), None)

    def get(self, epoch: int, offset: int) -> int | None:
        """The samples of the global batch at an offset; None where they are not known."""
        return self._by_offset.get((epoch, offset))


HELD_BATCHES = 16  # more than the runner and the copy to the device read ahead


class IndexedSource:
    """Batches of a dataset that is read by index: starting anywhere reads no other sample.

    Args:
        dataset: The dataset of the user.
        order: The items of an epoch.
        sharding: The rule by which items become batches.
        batched: None when an item is a sample, so that a batch is a list of items; True when an
            item is a list of indices; False when it is one index and stands for a whole batch.
        collate_fn: The function of the user that makes a batch, or None for torch's.
        keyed: Whether randomness is keyed at all.
        seed: The seed of this split.
        options: Further arguments of the `DataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        order: Order,
        sharding: Sharding,
        *,
        batched: bool | None,
        collate_fn: Collate | None,
        keyed: bool,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        self.name = type(dataset).__qualname__
        self.workers = int(options.get("num_workers", 0))
        self.sharding = sharding
        self.is_length_exact = order.is_length_exact
        self.is_length_fixed = order.is_length_fixed
        self.kind, treatment = _treatment(purity(dataset), collate_fn is not None, keyed)
        self._dataset = dataset
        self._order = order
        self._batched = batched
        self._seed = seed
        self._requests = _Requests()
        self._generator = torch.Generator()
        self._counts = SampleCounts(
            sharding.whole, self.workers * (options.get("prefetch_factor") or 2)
        )
        single = batched is False
        collate = collate_fn or (default_convert if single else default_collate)
        self._reader = IndexedReader(dataset, collate, not single, treatment, seed, sharding.whole)
        self._worker_init = options.get("worker_init_fn")
        self._loader: DataLoader[Any] | None = None
        if self.workers or options.get("pin_memory"):
            self._loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._requests,
                collate_fn=as_it_is,
                generator=self._generator,
                **options,
            )

    @property
    def items(self) -> int | None:
        """The number of items of an epoch over all ranks; None when the sampler does not tell."""
        return self._order.length

    def items_in(self, epoch: int) -> int | None:
        """The number of items of one epoch."""
        return self._order.length_in(epoch)

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same for a position in an epoch to mean the same."""
        fingerprint = getattr(self._dataset, "fingerprint", None)
        identity = {
            "sampler": self._order.name,
            "samples": length_of(self._dataset),
            "fingerprint": None if fingerprint is None else str(fingerprint),
        }
        by_index = isinstance(self._order, Shuffled) and not self._order.is_stored
        return identity | ({"shuffle": "by index"} if by_index else {})

    @property
    def doubts(self) -> list[str]:
        """Why the batches from the middle of an epoch on may differ from those of a whole epoch."""
        if self.kind != "unkeyed":
            return []
        return [f"keyed is False: what {self.name} draws at random is not restored"]

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Shuffle as the run did that saved this identity."""
        if isinstance(self._order, Shuffled):
            self._order.is_stored = state.get("shuffle") != "by index"

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from item `offset` of the global order on."""
        if self._loader is None:
            return self._read(epoch, offset)
        self._requests.iterator = (
            (epoch, position, indices) for position, indices in self._shares(epoch, offset)
        )
        # Making an iterator draws a seed for the workers, from here and not from the global stream.
        self._generator.manual_seed(derive(self._seed, "workers", epoch))
        if isinstance(self._worker_init, WorkerInit):
            self._worker_init.parent_is_here()
        return iter(self._loader)

    def samples_at(self, epoch: int, offset: int) -> int | None:
        """The number of samples in this rank's batch of the global batch at an offset."""
        if self._batched is None and self.is_length_exact:
            return len(self.sharding.positions(offset, self._order.length))
        return self._counts.get(epoch, offset)

    def _read(self, epoch: int, offset: int) -> Iterator[Any]:
        """The batches, read in this process: with fewer calls than PyTorch's loader makes."""
        read = self._reader.read
        for position, indices in self._shares(epoch, offset):
            yield read(epoch, position, indices)

    def _shares(self, epoch: int, offset: int) -> Iterator[tuple[int, Any]]:
        """The position of each of this rank's batches, and the indices that it is made of."""
        order = self._order
        shares = self.sharding.batches(
            order.items(epoch, offset), offset, lambda: order.items(epoch)
        )
        if self._batched is None and self.is_length_exact:
            return shares
        return self._counted(epoch, offset, shares)

    def _counted(
        self, epoch: int, offset: int, shares: Iterator[tuple[int, list[Any]]]
    ) -> Iterator[tuple[int, Any]]:
        """The shares, after the samples of each were noted."""
        for number, (position, items) in enumerate(shares):
            indices = items if self._batched is None else items[0]
            samples = None if self._batched is False else length_of(indices)
            if samples is not None:
                self._counts.add(epoch, offset + number * self.sharding.whole, samples)
            yield position, indices


def _treatment(pure: str, own_collate: bool, keyed: bool) -> tuple[str, Treatment]:
    """The kind of a dataset that is as pure as that, and how its randomness is treated."""
    draws = pure in ("unknown", "random") or (pure == "known" and own_collate)
    if not keyed:
        return ("unkeyed" if draws else "deterministic"), "free"
    if not draws:
        return "deterministic", "trusted" if pure == "declared" else "free"
    return "keyed", "keyed" if pure == "random" else "watched"


class ListSource:
    """A list of ready-made batches; rank r takes every `world_size`-th.

    Args:
        batches: The batches of the user.
        sharding: The sharding, with a size of one.
    """

    kind = "deterministic"
    name = "list"
    workers = 0
    is_length_exact = True
    is_length_fixed = True

    def __init__(self, batches: Sequence[Any], sharding: Sharding) -> None:
        self.sharding = sharding
        self._batches = batches

    @property
    def items(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def items_in(self, epoch: int) -> int:
        """The number of batches, the same in every epoch."""
        return len(self._batches)

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same for a position in an epoch to mean the same."""
        return {"sampler": "list", "samples": len(self._batches), "fingerprint": None}

    @property
    def doubts(self) -> list[str]:
        """No reasons: a list is what it is."""
        return []

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is one way to read a list."""

    def samples_at(self, epoch: int, offset: int) -> None:
        """Return None: the user made the batches."""

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from number `offset` on."""
        if self.sharding.world_size == 1:
            return islice(self._batches, offset, None)
        shares = self.sharding.batches(
            islice(self._batches, offset, None), offset, lambda: iter(self._batches)
        )
        return (batch for _, (batch,) in shares)


class _Requests:
    """The dataset that the `DataLoader` iterates: the requests of the epoch that is being read."""

    def __init__(self) -> None:
        self.iterator: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


HELD_STATES = 3  # the batch that is trained on may be two behind the last one that was read


class StreamSource:
    """Batches of an iterable, a function that returns one, or a loader with a state of its own.

    Every rank reads the whole stream and takes every `world_size`-th batch; in training the last
    batches that do not suffice for every rank are left out. The stream is begun, and every batch
    read, under generators seeded with (seed, epoch, position) and put back afterwards.

    Args:
        source: Anything with `__iter__`, or a function that returns it, anew for each epoch.
        sharding: The sharding, with a size of one.
        keyed: Whether generators of this process are seeded while the stream is read.
        replays: Whether to begin at the start even where the stream has a state.
        seed: The seed of this split.
        length: The number of batches of an epoch over all ranks, as the stream claims; None when
            nobody knows.
        dataset: The dataset of the user, when `source` is our own `DataLoader` of it.
        generator: The generator of that `DataLoader`.
        counted: Whether each batch of `source` comes with its number of samples before it.

    Attributes:
        kind: `"stateful"` when the source, or its dataset, has `state_dict` and `load_state_dict`
            and they are to be used, else `"iterable"`.
        doubts: Why batches from the middle of an epoch on may differ from those of a whole epoch.
    """

    is_length_fixed = True  # as far as it claims one
    is_length_exact = False  # the stream is read to its end, whatever it says of its length

    def __init__(
        self,
        source: Any,
        sharding: Sharding,
        *,
        keyed: bool,
        replays: bool,
        seed: int,
        length: int | None = None,
        dataset: Any = None,
        generator: torch.Generator | None = None,
        counted: bool = False,
    ) -> None:
        subject = source if dataset is None else dataset
        self.name: str = getattr(subject, "__qualname__", type(subject).__qualname__)
        self.sharding = sharding
        self.items = length
        self._source = source
        self._seed = seed
        self._generator = generator
        self.workers = int(getattr(source, "num_workers", 0))
        self._has_state = hasattr(subject, "state_dict") and hasattr(subject, "load_state_dict")
        self._is_ours = dataset is not None
        in_workers = self._is_ours and self.workers > 0
        self._owner = subject if self._has_state and not replays and not in_workers else None
        self.kind = "iterable" if self._owner is None else "stateful"
        self._treatment: Treatment = "keyed"
        if not keyed or in_workers:
            self._treatment = "free"
        elif purity(subject) == "declared":
            self._treatment = "trusted"
        self.doubts = self._doubts(keyed)
        is_open = self._owner is None and not in_workers
        own = own_generators(subject) if is_open and self._treatment == "keyed" else []
        self._own = [(state := generator_state(each), state.state()) for each in own]
        self._counted = counted
        self._counts = SampleCounts(sharding.whole)
        self._was_read = False
        self._states: deque[tuple[int, Any]] = deque(maxlen=HELD_STATES)

    @property
    def obstacle(self) -> tuple[str, str]:
        """Why a stream without a state cannot begin in the middle, and what would change that."""
        if self._has_state and self.workers:
            workers = f"the state of {self.name} is spread over {self.workers} workers"
            return workers, "set num_workers=0 or use torchdata's StatefulDataLoader"
        without = f"{self.name} is read from its start, without state_dict()/load_state_dict()"
        return without, "implement both methods"

    @property
    def identity(self) -> dict[str, Any]:
        """The values that must be the same for a position in an epoch to mean the same."""
        identity = {"sampler": self.name, "samples": self.items, "workers": self.workers}
        return identity | {"draws_by_itself": any(now.moved(then) for now, then in self._own)}

    def items_in(self, epoch: int) -> int | None:
        """The length that the stream claims, the same in every epoch."""
        return self.items

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is one way to read a stream."""

    def samples_at(self, epoch: int, offset: int) -> int | None:
        """The number of samples in this rank's batch of the global batch at an offset."""
        return self._counts.get(epoch, offset)

    def state_at(self, offset: int) -> Any:
        """The stream's own state after its first `offset` batches.

        Raises:
            DataError: That batch is not among the last few that were read.
        """
        for position, state in self._states:
            if position == offset:
                return state
        held = ", ".join(str(position) for position, _ in self._states) or "none"
        raise DataError(f"the state of {self.name} after batch {offset} is gone; held are {held}")

    def hold_state(self, offset: int, state: Any) -> None:
        """Begin from this state when the batches from number `offset` on are asked for."""
        self._states.clear()
        self._states.append((offset, state))

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from number `offset` on."""
        world_size = self.sharding.world_size
        stream = self._read(epoch, offset)
        for number, (_, (batch,)) in enumerate(self.sharding.batches(stream, offset)):
            if self._counted:
                samples, batch = batch
                self._counts.add(epoch, offset + number * world_size, samples)
            yield batch

    def _read(self, epoch: int, offset: int) -> Iterator[Any]:
        start, iterator = self._begin(epoch, offset)
        world_size = self.sharding.world_size
        for position in count(start):
            with self._streams("batch", epoch, position):
                try:
                    batch = next(iterator)
                except StopIteration:
                    break
                if self._owner is not None and (position + 1 - offset) % world_size == 0:
                    self._states.append((position + 1, copy.deepcopy(self._owner.state_dict())))
            self._was_read = True
            if position >= offset:
                yield batch
        if position == 0 and self._was_read:
            raise DataError(
                f"{self.name} gave no batch in epoch {epoch}, but it did before: an iterator can "
                "be read only once. Hand over an iterable, or the function that returns it"
            )

    def _begin(self, epoch: int, offset: int) -> tuple[int, Iterator[Any]]:
        held = [state for position, state in self._states if position == offset]
        resumes = self._owner is not None and offset > 0 and len(held) > 0
        source = self._source
        if self._generator is not None:
            self._generator.manual_seed(derive(self._seed, "workers", epoch))
        if isinstance(init := getattr(source, "worker_init_fn", None), WorkerInit):
            init.parent_is_here()
        with self._streams("epoch", epoch):
            for part in ("dataset", "sampler", "batch_sampler"):
                set_epoch(getattr(source, part, None), epoch)
            set_epoch(source, epoch)
            if resumes and self._owner is not None:
                self._owner.load_state_dict(copy.deepcopy(held[-1]))
            iterator = iter(source if hasattr(source, "__iter__") else source())
        return (offset if resumes else 0), iterator

    def _doubts(self, keyed: bool) -> list[str]:
        if not keyed:
            return [f"keyed is False: what {self.name} draws at random is not restored"]
        if self.workers and not self._is_ours and self._treatment != "trusted":
            return [f"what the workers of {self.name} draw at random may not be restored"]
        if self._owner is not None and _has_shuffle_buffer(self._owner):
            return [
                f"the shuffle buffer of {self.name} is not part of its state, it is filled anew: "
                "dataloader={'resume': 'replay'} would be exact"
            ]
        return []

    def _streams(self, *words: int | str) -> AbstractContextManager[None]:
        """The state of this process's generators while the stream is read."""
        if self._treatment == "keyed":
            return keyed_rng(derive(self._seed, *words))
        if self._treatment == "trusted":
            return watched(self.name)
        return nullcontext()


def _has_shuffle_buffer(owner: Any) -> bool:
    """Whether it is a streamed Hugging Face dataset with a buffer, which its state leaves out."""
    part = getattr(getattr(owner, "dataset", owner), "_ex_iterable", None)
    while part is not None:
        if type(part).__name__ == "BufferShuffledExamplesIterable":
            return True
        part = getattr(part, "ex_iterable", None)
    return False
