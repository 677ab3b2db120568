"""Randomness of datasets as a function of (seed, epoch, position) instead of what ran before.

A dataset that draws at random would give other values after a resume, or with another number of
workers, because generators remember everything that was drawn from them. Here the generators of
python, numpy and torch (CPU) are seeded anew for every fetched batch, from the position of its
first sample in the epoch's order. A worker does nothing else, so that is all; the main process
puts them back, which costs about 50 us a batch. Generators that the dataset keeps for itself are
treated alike.

Three kinds of dataset are told apart: those of a type that draws nothing (`TensorDataset`, a list)
are left alone; those that declare `deterministic = True` are believed and watched, at about 2 us a
batch; all others are keyed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import (
    Dataset,
    IterableDataset,
    get_worker_info,
)

from danling.data.randomness import (
    Treatment,
    keyed_rng,
    own_generators,
    own_keyed,
    seed_own,
    watched,
)
from danling.data.sampling import set_epoch
from danling.seed import derive, seed_streams

__all__ = ["IndexedReader", "IterableReader", "WorkerInit", "as_it_is"]


Collate = Callable[[Any], Any]


class IndexedReader(Dataset[Any]):
    """A dataset whose item is a collated batch, read under generators of its own.

    Its index is (epoch, position, indices): the epoch travels with each batch, so that persistent
    workers see it, and reading and collating are one call, so that both are keyed.

    Args:
        dataset: Of the user.
        collate_fn: Makes the batch.
        batched: Whether `indices` is a list of indices, or the one index of a ready-made batch.
        treatment: `"keyed"`, `"watched"` (a draw is an error) or `"free"`.
        seed: Of this split.
    """

    def __init__(
        self, dataset: Any, collate_fn: Collate, batched: bool, treatment: Treatment, seed: int
    ) -> None:
        self.dataset = dataset
        self._collate = collate_fn
        self._batched = batched
        self._treatment = treatment
        self._seed = seed
        self._epoch: int | None = None
        self._own = own_generators(dataset, collate_fn) if treatment == "keyed" else []
        self._was_read = False
        self._wants_epoch = callable(getattr(dataset, "set_epoch", None))
        self._python_looked_at = False

    def __getitem__(self, item: tuple[int, int, Any]) -> Any:
        epoch, position, indices = item
        if self._wants_epoch and epoch != self._epoch:
            self._enter(epoch)
        if self._treatment == "free":
            return self._read(indices)
        if self._treatment == "watched":
            return self._watched(indices)
        key = derive(self._seed, "batch", epoch, position)
        if get_worker_info() is None:
            with keyed_rng(key), own_keyed(self._own, key) if self._own else nullcontext():
                batch = self._read(indices)
        else:
            seed_streams(key)  # and nothing to put back: a worker has no other use for them
            seed_own(self._own, key)
            batch = self._read(indices)
        if self._was_read or not self._finds_own():
            return batch
        return self[item]  # the first read made generators: once more, with those seeded too

    def _finds_own(self) -> bool:
        """Look for generators that the dataset did not have before."""
        self._was_read, known = True, set(map(id, self._own))
        self._own = own_generators(self.dataset, self._collate)
        return not known.issuperset(map(id, self._own))

    def _enter(self, epoch: int) -> None:
        with keyed_rng(derive(self._seed, "epoch", epoch)):
            set_epoch(self.dataset, epoch)
        if self._treatment == "keyed":
            self._finds_own()
        self._epoch = epoch

    def _read(self, indices: Any) -> Any:
        if not self._batched:
            return self._collate(self.dataset[indices])
        together = getattr(self.dataset, "__getitems__", None)
        samples = together(indices) if together else [self.dataset[index] for index in indices]
        return self._collate(samples)

    def _watched(self, indices: Any) -> Any:
        first, self._python_looked_at = not self._python_looked_at, True
        with watched(type(self.dataset).__qualname__, python=first):
            return self._read(indices)


class IterableReader(IterableDataset[Any]):
    """An iterable dataset that starts every epoch under generators of its own in each worker.

    Args:
        dataset: Of the user; anything with `__iter__`.
        seed: Of this split.
        keyed: Whether the generators of workers are seeded.
    """

    def __init__(self, dataset: Iterable[Any], seed: int, keyed: bool) -> None:
        self.dataset = dataset
        self._seed = seed
        self._is_keyed = keyed
        # Shared memory, because nothing else reaches a persistent worker between two epochs.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset the epoch, here and in every worker."""
        self._epoch.fill_(epoch)
        set_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            epoch = int(self._epoch)
            key = derive(self._seed, "epoch", epoch, worker.id)
            if self._is_keyed:
                seed_streams(key)
            set_epoch(self.dataset, epoch)
            if self._is_keyed:
                seed_own(own_generators(self.dataset), key)
        return iter(self.dataset)


class WorkerInit:
    """Shows a worker the user's dataset in `get_worker_info()`, and runs the user's own function.

    Args:
        function: The user's `worker_init_fn`.
    """

    def __init__(self, function: Callable[[int], None] | None) -> None:
        self._function = function

    def __call__(self, worker_id: int) -> None:
        inherited = signal.getsignal(signal.SIGTERM)
        if callable(inherited):  # torch has put its own handler under it, by which the worker dies
            signal.signal(signal.SIGTERM, inherited)
        worker = get_worker_info()
        if worker is not None and isinstance(worker.dataset, IndexedReader | IterableReader):
            object.__setattr__(worker, "dataset", worker.dataset.dataset)  # it is frozen
        if self._function is not None:
            self._function(worker_id)


def as_it_is(batch: Any) -> Any:
    """The `collate_fn` of what is collated already."""
    return batch
