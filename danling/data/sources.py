"""Where batches come from: a dataset read by index, or a list of batches; streams are in `stream`.

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

from danling.data.randomness import Treatment, keyed_rng, mark, own_generators, purity, watched
from danling.data.readers import Collate, IndexedReader, as_it_is
from danling.data.sampling import Order, Sharding, length_of, set_epoch
from danling.errors import DataError
from danling.seed import derive

__all__ = ["IndexedSource", "ListSource", "Source", "StreamSource"]


class Source(Protocol):
    """What a loader needs to know of where its batches come from."""

    kind: str
    name: str
    sharding: Sharding
    workers: int

    @property
    def items(self) -> int | None:
        """Items of an epoch over all ranks; None when nobody knows."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a position in an epoch to mean the same."""

    @property
    def doubts(self) -> list[str]:
        """Why the batches from the middle of an epoch on may differ from those of a whole epoch."""

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from item `offset` of the global order on."""


class IndexedSource:
    """Batches of a dataset that is read by index: starting anywhere reads no other sample.

    Args:
        dataset: Of the user.
        order: The items of an epoch.
        sharding: How they become batches.
        batched: None when an item is a sample, so that a batch is a list of items; True when an
            item is a list of indices; False when it is one index and stands for a whole batch.
        collate_fn: Of the user.
        keyed: Whether randomness is keyed at all.
        seed: Of this split.
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
        pure = purity(dataset)
        draws = pure == "unknown" or (pure == "known" and collate_fn is not None)
        self.kind = ("keyed" if keyed else "unkeyed") if draws else "deterministic"
        self.name = type(dataset).__qualname__
        self.workers = int(options.get("num_workers", 0))
        self.sharding = sharding
        self._dataset = dataset
        self._order = order
        self._batched = batched
        self._seed = seed
        self._feed = _Feed()
        self._generator = torch.Generator()
        treatment: Treatment = "keyed" if self.kind == "keyed" else "free"
        if pure == "declared" and keyed:
            treatment = "watched"
        self._plain = treatment == "free" and not hasattr(dataset, "set_epoch")
        self._loader = self._make_loader(collate_fn, treatment, options)

    @property
    def items(self) -> int | None:
        """Items of an epoch over all ranks; None when the sampler does not tell."""
        return self._order.length

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a position in an epoch to mean the same."""
        fingerprint = getattr(self._dataset, "fingerprint", None)
        return {
            "sampler": self._order.name,
            "samples": length_of(self._dataset),
            "fingerprint": None if fingerprint is None else str(fingerprint),
        }

    @property
    def doubts(self) -> list[str]:
        """Why the batches from the middle of an epoch on may differ from those of a whole epoch."""
        if self.kind != "unkeyed":
            return []
        return [f"keyed is False: what {self.name} draws at random is not restored"]

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from item `offset` of the global order on."""
        self._feed.indices = self._requests(epoch, offset)
        # Making an iterator draws a seed for the workers, from here and not from the global stream.
        self._generator.manual_seed(derive(self._seed, "workers", epoch))
        return iter(self._loader)

    def _requests(self, epoch: int, offset: int) -> Iterator[Any]:
        order = self._order
        shares = self.sharding.batches(
            order.items(epoch, offset), offset, lambda: order.items(epoch)
        )
        for position, items in shares:
            indices = items if self._batched is None else items[0]
            yield indices if self._plain else (epoch, position, indices)

    def _make_loader(
        self, collate_fn: Collate | None, treatment: Treatment, options: Mapping[str, Any]
    ) -> DataLoader[Any]:
        single = self._batched is False
        if self._plain:
            sampling = {"batch_size": None, "sampler": self._feed}
            return DataLoader(
                self._dataset,
                collate_fn=collate_fn,
                generator=self._generator,
                **(sampling if single else {"batch_sampler": self._feed}),
                **options,
            )
        collate = collate_fn or (default_convert if single else default_collate)
        return DataLoader(
            IndexedReader(self._dataset, collate, not single, treatment, self._seed),
            batch_size=None,
            sampler=self._feed,
            collate_fn=as_it_is,
            generator=self._generator,
            **options,
        )


class ListSource:
    """A list of ready-made batches; rank r takes every `world_size`-th.

    Args:
        batches: Of the user.
        sharding: With a size of one.
    """

    kind = "deterministic"
    name = "list"
    workers = 0

    def __init__(self, batches: Sequence[Any], sharding: Sharding) -> None:
        self.sharding = sharding
        self._batches = batches

    @property
    def items(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a position in an epoch to mean the same."""
        return {"sampler": "list", "samples": len(self._batches), "fingerprint": None}

    @property
    def doubts(self) -> list[str]:
        """None: a list is what it is."""
        return []

    def batches(self, epoch: int, offset: int) -> Iterator[Any]:
        """This rank's batches of an epoch, from number `offset` on."""
        if self.sharding.world_size == 1:
            return islice(self._batches, offset, None)
        shares = self.sharding.batches(
            islice(self._batches, offset, None), offset, lambda: iter(self._batches)
        )
        return (batch for _, (batch,) in shares)


class _Feed:
    """What the `DataLoader` iterates: the indices of the epoch that is being read."""

    def __init__(self) -> None:
        self.indices: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.indices


HELD_STATES = 3  # the batch that is trained on may be two behind the last one that was read


class StreamSource:
    """Batches of an iterable, a function that returns one, or a loader with a state of its own.

    Every rank reads the whole stream and takes every `world_size`-th batch; in training the last
    batches that do not suffice for every rank are left out. The stream is begun, and every batch
    read, under generators seeded with (seed, epoch, position) and put back afterwards.

    Args:
        source: Anything with `__iter__`, or a function that returns it, anew for each epoch.
        sharding: With a size of one.
        keyed: Whether generators of this process are seeded while the stream is read.
        replays: Whether to begin at the start even where the stream has a state.
        seed: Of this split.
        length: Batches of an epoch over all ranks; None when nobody knows.
        dataset: Of the user, when `source` is our own `DataLoader` of it.
        generator: Of that `DataLoader`.

    Attributes:
        kind: `"stateful"` when the source, or its dataset, has `state_dict` and `load_state_dict`
            and they are to be used, else `"iterable"`.
        doubts: Why batches from the middle of an epoch on may differ from those of a whole epoch.
    """

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
            self._treatment = "watched"
        self.doubts = self._doubts(keyed)
        is_open = self._owner is None and not in_workers
        self._own = own_generators(subject) if is_open and self._treatment == "keyed" else []
        self._mark = mark(self._own)
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
        """What must be the same for a position in an epoch to mean the same."""
        identity = {"sampler": self.name, "samples": self.items, "workers": self.workers}
        return identity | {"draws_by_itself": mark(self._own) != self._mark}

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
        stream = self._read(epoch, offset)
        if self.sharding.world_size == 1:
            return stream
        return (batch for _, (batch,) in self.sharding.batches(stream, offset))

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
        if self.workers and not self._is_ours and self._treatment != "watched":
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
        if self._treatment == "watched":
            return watched(self.name, python=words[-1] == 0)
        return nullcontext()


def _has_shuffle_buffer(owner: Any) -> bool:
    """Whether it is a streamed Hugging Face dataset with a buffer, which its state leaves out."""
    part = getattr(getattr(owner, "dataset", owner), "_ex_iterable", None)
    while part is not None:
        if type(part).__name__ == "BufferShuffledExamplesIterable":
            return True
        part = getattr(part, "ex_iterable", None)
    return False
