"""The readers of a dataset: by index or from its start, with what it draws keyed by (seed, epoch).

A batch of a dataset that is read by index is a pure function of (seed, epoch, position), where the
position is that of its first sample in the epoch's order. It is read under watch, which costs about
3 us. When a generator moves for the first time, the generators are put back, that batch is read
again under its key, and every batch after it is read under its key at once. A batch that draws
nothing is the same with and without a key. So each worker may find out by itself.

A dataset that says `deterministic = False` is keyed from its first batch on. That is for what
depends on a generator without drawing from it, such as `torch.initial_seed()`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import current_process
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from danling.data.generators import OwnGenerators
from danling.data.randomness import Randomness, Treatment, drew, keyed_rng
from danling.data.sampling import set_epoch
from danling.seed import derive, seed_streams

__all__ = ["CountingCollate", "IndexedReader", "IterableReader", "WorkerInit", "as_it_is"]


Collate = Callable[[Any], Any]
KEYED_AHEAD = 16  # batches whose keyed states are made at a time, of 10 kB each


class IndexedReader(Dataset[Any]):
    """A dataset whose item is a collated batch, read under generators of its own.

    Its index is (epoch, position, indices): the epoch travels with each batch, so that persistent
    workers see it, and reading and collating are one call, so that both are keyed.

    Args:
        dataset: The dataset of the user.
        collate_fn: The function that makes a batch of samples.
        batched: Whether `indices` is a list of indices, or the one index of a ready-made batch.
        treatment: The treatment of randomness.
        seed: The seed of this split.
        step: The distance of the positions of two batches that follow each other.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Collate,
        batched: bool,
        treatment: Treatment,
        seed: int,
        step: int = 1,
    ) -> None:
        self.dataset = dataset
        self._collate = collate_fn
        self._batched = batched
        self._treatment = treatment
        self._seed = seed
        self._step = step
        self._keyed_states: dict[int, list[Any]] = {}  # of this epoch, by position
        self._draws = treatment == "keyed"
        self._epoch: int | None = None
        self._randomness: Randomness | None = None
        self._in_worker = False

    def __getitem__(self, item: tuple[int, int, Any]) -> Any:
        return self.read(*item)

    def read(self, epoch: int, position: int, indices: Any) -> Any:
        """The batch of these indices, which begins at this position of the epoch's order."""
        if epoch != self._epoch:
            self._enter(epoch)
        randomness = self._randomness
        if randomness is None:
            return self._read(indices)
        if self._draws:
            return self._read_keyed(randomness, epoch, position, indices)
        states = randomness.states()
        try:
            batch = self._read(indices)
            moved = randomness.moved(states)
        except BaseException:
            randomness.put_back(states)
            raise
        if moved:
            randomness.put_back(states)
            if self._treatment == "trusted":
                raise drew(type(self.dataset).__qualname__, moved)
        elif not randomness.grew():
            return batch
        self._draws = True
        return self._read_keyed(randomness, epoch, position, indices)

    def _enter(self, epoch: int) -> None:
        """Begin an epoch: tell the dataset, and find the generators that it has now."""
        if callable(getattr(self.dataset, "set_epoch", None)):
            with keyed_rng(derive(self._seed, "epoch", epoch)):
                set_epoch(self.dataset, epoch)
        if self._randomness is not None:
            self._randomness.look()
        elif self._treatment != "free":
            self._randomness = Randomness(self.dataset, self._collate)
        self._in_worker = get_worker_info() is not None
        self._epoch = epoch
        self._keyed_states = {}

    def _read_keyed(self, randomness: Randomness, epoch: int, position: int, indices: Any) -> Any:
        if self._in_worker:  # which has no other use for its generators
            randomness.seed(derive(self._seed, "batch", epoch, position))
            batch = self._read(indices)
        else:
            keyed = self._keyed_states.pop(position, None) or self._key(randomness, epoch, position)
            states = randomness.states()
            try:
                randomness.put_back(keyed)
                batch = self._read(indices)
            finally:
                randomness.put_back(states)
        if not randomness.grew():
            return batch
        # The read made generators, which began anywhere: once more, with those seeded too.
        self._keyed_states = {}
        return self._read_keyed(randomness, epoch, position, indices)

    def _key(self, randomness: Randomness, epoch: int, position: int) -> list[Any]:
        """The keyed states for the batch at a position; those of the next ones are made with it."""
        positions = range(position, position + KEYED_AHEAD * self._step, self._step)
        keys = (derive(self._seed, "batch", epoch, each) for each in positions)
        states = randomness.keyed_states(keys)
        self._keyed_states = dict(zip(positions, states, strict=True))
        return self._keyed_states.pop(position)

    def _read(self, indices: Any) -> Any:
        if not self._batched:
            return self._collate(self.dataset[indices])
        together = getattr(self.dataset, "__getitems__", None)
        samples = together(indices) if together else [self.dataset[index] for index in indices]
        return self._collate(samples)


class IterableReader(IterableDataset[Any]):
    """An iterable dataset that starts every epoch under generators of its own in each worker.

    Args:
        dataset: The dataset of the user: anything with `__iter__`.
        seed: The seed of this split.
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
                OwnGenerators(self.dataset).seed(key)
        return iter(self.dataset)


class WorkerInit:
    """The first call of a worker: it arranges to end with its parent, and shows the user's dataset.

    `get_worker_info().dataset` is then the dataset of the user, and the user's own function runs.

    Args:
        function: The user's `worker_init_fn`.
    """

    def __init__(self, function: Callable[[int], None] | None) -> None:
        self._function = function
        self.parent_is_here()

    def parent_is_here(self) -> None:
        """Take note that this process, and this thread, will start the workers."""
        self._parent = os.getpid()
        self._outlives_thread = threading.current_thread() is not threading.main_thread()

    def __call__(self, worker_id: int) -> None:
        inherited = signal.getsignal(signal.SIGTERM)
        if callable(inherited):  # torch has put its own handler under it, by which the worker dies
            signal.signal(signal.SIGTERM, inherited)
        if not isinstance(current_process(), ForkServerProcess):  # the server is the parent there
            end_with(self._parent, ask_kernel=not self._outlives_thread)
        worker = get_worker_info()
        if worker is not None and isinstance(worker.dataset, IndexedReader | IterableReader):
            object.__setattr__(worker, "dataset", worker.dataset.dataset)  # it is frozen
        if self._function is not None:
            self._function(worker_id)


_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with(parent: int, *, ask_kernel: bool) -> None:
    """Let this process end when its parent ends, and end it at once where the parent has ended.

    PyTorch's worker remembers its parent when it begins to work, and so never misses one that was
    killed before. It looks only while it waits for its next batch, and not while it hands one over,
    which takes for ever where nobody reads. So the kernel is asked to end it (`prctl(2)`, Linux
    only). That request says nothing of a parent that ended before it was made, so the parent is
    looked at afterwards.

    Args:
        parent: The process id of the parent.
        ask_kernel: Whether to ask, for the kernel takes the thread that forked for the parent.
    """
    if sys.platform == "linux" and ask_kernel:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class CountingCollate:
    """A `collate_fn` that gives the number of samples beside the batch.

    Args:
        function: The user's `collate_fn`.

    Example:
        >>> CountingCollate(tuple)([1, 2, 3])
        (3, (1, 2, 3))
    """

    def __init__(self, function: Collate) -> None:
        self._function = function

    def __call__(self, samples: Any) -> tuple[int, Any]:
        return len(samples), self._function(samples)


def as_it_is(batch: Any) -> Any:
    """The `collate_fn` of what is collated already."""
    return batch
