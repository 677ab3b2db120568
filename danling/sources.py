"""Where batches come from: a dataset read by index, or a list of batches; streams are in `stream`.

A source gives this rank's batches of an epoch from any item of its global order on. An item is a
sample where we make the batches, and a batch where the user does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, default_collate, default_convert

from danling.keyed import Collate, IndexedReader, Treatment, as_it_is, purity
from danling.sampling import Order, Sharding, length_of
from danling.seed import derive

__all__ = ["IndexedSource", "ListSource", "Source"]


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
