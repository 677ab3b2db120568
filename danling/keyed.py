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

import ctypes
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    get_worker_info,
)

from danling.errors import DataError
from danling.generators import own_generators, own_keyed, seed_own
from danling.sampling import set_epoch
from danling.seed import derive, isolated_rng, seed_streams

__all__ = [
    "IndexedReader",
    "IterableReader",
    "WorkerInit",
    "as_it_is",
    "keyed_rng",
    "purity",
    "watched",
]

Collate = Callable[[Any], Any]
Purity = Literal["known", "declared", "unknown"]
Treatment = Literal["keyed", "watched", "free"]

_KEY_BYTES = 4 * 624  # of numpy's MT19937, followed by the position in it


def purity(dataset: object) -> Purity:
    """Whether reading a dataset draws random numbers: known not to, declared not to, or unknown.

    Example:
        >>> purity([1, 2, 3])
        'known'
        >>> purity(Subset(TensorDataset(torch.zeros(3)), [0, 2]))
        'known'
        >>> class Pictures(Dataset):
        ...     deterministic = True
        >>> purity(Pictures())
        'declared'
    """
    declared = getattr(dataset, "deterministic", None)
    if isinstance(declared, bool):
        return "declared" if declared else "unknown"
    kind = type(dataset)
    if kind in (TensorDataset, list, tuple, range, torch.Tensor) or _is_array(dataset):
        return "known"
    found = {purity(part) for part in _parts(dataset)}
    if not found or "unknown" in found:
        return "unknown"
    return "declared" if "declared" in found else "known"


@contextmanager
def keyed_rng(key: int) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) for a block, and put them back after it.

    Example:
        >>> with keyed_rng(7):
        ...     first = random.random()
        >>> with keyed_rng(7):
        ...     first == random.random()
        True
    """
    with isolated_rng(devices=False):
        seed_streams(key)
        yield


@contextmanager
def watched(name: str, python: bool = False) -> Iterator[None]:
    """Raise when a block that belongs to a deterministic dataset draws random numbers.

    Args:
        name: Of the dataset's type.
        python: Whether to look at python's generator as well, which takes 15 us instead of 2.

    Raises:
        DataError: It drew.
    """
    torch_before, numpy_before = _torch_mark(), _numpy_mark()
    python_before = random.getstate() if python else None
    yield
    drawn = []
    if _torch_mark() != torch_before:
        drawn.append("torch")
    if _numpy_mark() != numpy_before:
        drawn.append("numpy")
    if python and random.getstate() != python_before:
        drawn.append("python")
    if drawn:
        raise DataError(
            f"{name} says deterministic = True, but reading a batch of it drew random numbers from "
            f"{' and '.join(drawn)}. Remove that attribute: what is drawn is then keyed by (seed, "
            "epoch, batch), and comes back the same after a resume"
        )


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


def _parts(dataset: object) -> Sequence[object]:
    if type(dataset) is Subset:
        return [dataset.dataset]
    if type(dataset) is ConcatDataset:
        return dataset.datasets
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return list(parts.values() if isinstance(parts, dict) else parts)
    return []


def _is_array(dataset: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(dataset) is numpy.ndarray


def _torch_mark() -> bytes:
    state = torch.default_generator.get_state()
    return ctypes.string_at(state.data_ptr(), state.numel())


def _numpy_mark() -> bytes:
    """The bits of numpy's global generator, read where they lie: `get_state` takes 24 us."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return b""
    generator = numpy.random.get_bit_generator()
    if type(generator) is not numpy.random.MT19937:
        return b""
    return ctypes.string_at(generator.ctypes.state_address, _KEY_BYTES + 4)
