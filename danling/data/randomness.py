"""Randomness as a function of a key, instead of what was drawn before.

A dataset that draws at random would give other values after a resume, or with another number of
workers, because generators remember everything that was drawn from them. So a batch that draws is
read under generators that are seeded with a key, and they are put back afterwards.

Most datasets draw nothing, and they cannot be told by looking. `Randomness` says whether a
generator moved while something was read, which costs about 2 us. What follows from it is up to
`readers`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from danling.data.generators import OwnGenerators
from danling.errors import DataError
from danling.seed import isolated_rng, process_generators, seed_streams

__all__ = ["Purity", "Randomness", "Treatment", "drew", "keyed_rng", "purity", "watched"]


class Randomness:
    """The generators that reading draws from: those of the process, and those of what is read.

    Args:
        things: The objects that are read, such as a dataset and its collate function.

    Example:
        >>> import random
        >>> randomness = Randomness()
        >>> before = randomness.states()
        >>> randomness.moved(before)
        []
        >>> first = random.random()
        >>> randomness.moved(before)
        ['python']
        >>> randomness.put_back(before)
        >>> random.random() == first
        True
    """

    def __init__(self, *things: object) -> None:
        self._own = OwnGenerators(*things)
        self._process = process_generators()
        self._all = [*self._process, *self._own.states]

    def states(self) -> list[Any]:
        """The states of all generators as they are now."""
        return [generator.state() for generator in self._all]

    def moved(self, states: Sequence[Any]) -> list[str]:
        """The libraries from whose generators something was drawn since these states were taken.

        Numpy is among them when it was imported since then: its state before is not known.
        """
        found = []
        for generator, state in zip(self._all, states, strict=True):
            if generator.moved(state):
                found.append(generator.library)  # nearly always nothing moved
        if self._process is not process_generators():
            found.append("numpy")
        return found

    def put_back(self, states: Sequence[Any]) -> None:
        """Set the generators to the states that were taken last."""
        for generator, state in zip(self._all, states, strict=True):
            generator.put_back(state)
        if self._process is not process_generators():
            self._update()

    def seed(self, key: int) -> None:
        """Seed all generators, so that what is drawn from now on follows from the key."""
        seed_streams(key)
        if self._own.states:
            self._own.seed(key)

    def keyed_states(self, keys: Iterable[int]) -> list[list[Any]]:
        """The states of all generators when they are seeded with each of the keys.

        To make several at once is much faster than to seed before each batch, when the code and the
        tables that seeding needs have long left the processor's cache.
        """
        before, keyed = self.states(), []
        for key in keys:
            self.seed(key)
            keyed.append(self.states())
        self.put_back(before)
        return keyed

    def grew(self) -> bool:
        """Whether what is read keeps generators that it did not keep before."""
        return self._own.changed() and self.look()

    def look(self) -> bool:
        """Search for generators again; returns whether there are new ones."""
        is_new = self._own.look()
        self._update()
        return is_new

    def _update(self) -> None:
        self._process = process_generators()
        self._all = [*self._process, *self._own.states]


@contextmanager
def keyed_rng(key: int) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) for a block, and put them back after it.

    Example:
        >>> import random
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
def watched(name: str) -> Iterator[None]:
    """Raise when a block that belongs to a deterministic dataset draws random numbers.

    Args:
        name: The name of the dataset's type.

    Raises:
        DataError: The block drew random numbers.
    """
    generators = process_generators()
    states = [generator.state() for generator in generators]
    yield
    drawn = [
        generator.library
        for generator, state in zip(generators, states, strict=True)
        if generator.moved(state)
    ]
    if drawn:
        raise drew(name, drawn)


def drew(name: str, libraries: Sequence[str]) -> DataError:
    """The error of a dataset that says it draws nothing, and does."""
    return DataError(
        f"{name} says deterministic = True, but reading a batch of it drew random numbers from "
        f"{' and '.join(dict.fromkeys(libraries))}. Remove that attribute: what is drawn is then "
        "keyed by (seed, epoch, batch), and comes back the same after a resume"
    )


# What is known of a dataset beforehand


Purity = Literal["known", "declared", "random", "unknown"]
"""Whether reading draws: known not to, declared not to, declared to, or not known."""

Treatment = Literal["free", "watched", "keyed", "trusted"]
"""The treatment of randomness while a batch is read.

- `"free"`: it is left alone.
- `"watched"`: it is keyed from the first batch on that draws.
- `"keyed"`: it is keyed.
- `"trusted"`: a draw is an error, because the dataset says that it draws nothing.
"""


def purity(dataset: object) -> Purity:
    """Whether reading a dataset draws random numbers, as far as its type and attributes say.

    Example:
        >>> purity([1, 2, 3])
        'known'
        >>> purity(Subset(TensorDataset(torch.zeros(3)), [0, 2]))
        'known'
        >>> class Pictures(torch.utils.data.Dataset):
        ...     deterministic = True
        >>> purity(Pictures())
        'declared'
    """
    declared = getattr(dataset, "deterministic", None)
    if isinstance(declared, bool):
        return "declared" if declared else "random"
    kind = type(dataset)
    if kind in (TensorDataset, list, tuple, range, torch.Tensor) or _is_array(dataset):
        return "known"
    found = {purity(piece) for piece in _pieces(dataset)} or {"unknown"}
    order: tuple[Purity, ...] = ("random", "unknown", "declared")
    return next((each for each in order if each in found), "known")


def _is_array(dataset: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(dataset) is numpy.ndarray


def _pieces(dataset: object) -> Sequence[object]:
    """The datasets that one of torch's is made of."""
    if type(dataset) is Subset:
        return [dataset.dataset]
    if type(dataset) is ConcatDataset:
        return dataset.datasets
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return list(parts.values() if isinstance(parts, dict) else parts)
    return []
