"""Random generators that datasets and samplers keep for themselves, as augmentation libraries do.

Seeding the generators of the process does not reach them: they remember what was drawn from them,
and begin anew in a new process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import pickle
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch.utils.data import (
    ConcatDataset,
    StackDataset,
    Subset,
    TensorDataset,
)

from danling.errors import DataError
from danling.seed import derive, isolated_rng, seed_streams

__all__ = [
    "Generator",
    "keyed_rng",
    "mark",
    "own_generators",
    "own_keyed",
    "purity",
    "seed_own",
    "state_of",
    "watched",
]


Generator = Any
"""`random.Random`, `torch.Generator`, `numpy.random.Generator` or `numpy.random.RandomState`."""

_LONGEST = 64  # a list of transforms, not one of a million samples
_DEEPEST = 8
_OPAQUE = (str, bytes, int, float, type, ModuleType, FunctionType, torch.Tensor, torch.nn.Module)


def own_generators(*things: object, besides: tuple[type, ...] = ()) -> list[Generator]:
    """The generators in the attributes of things, and of what is in these; each once.

    Those of the process itself are left out, and what is in long lists is not looked for.

    Args:
        things: Where to look.
        besides: Types that are passed over.

    Example:
        >>> class Crop:
        ...     def __init__(self):
        ...         self.random = random.Random(0)
        >>> class Pictures:
        ...     def __init__(self):
        ...         self.transforms = [Crop(), Crop()]
        >>> len(own_generators(Pictures()))
        2
    """
    found: dict[int, Generator] = {}
    seen: set[int] = set()
    level = list(things)
    for _ in range(_DEEPEST):
        below: list[object] = []
        for thing in level:
            if id(thing) in seen or isinstance(thing, (*_OPAQUE, *besides)):
                continue
            seen.add(id(thing))
            if _is_generator(thing):
                found[id(thing)] = thing
            else:
                below += _parts(thing)
        level = below
    return [generator for generator in found.values() if not _is_of_process(generator)]


@contextmanager
def own_keyed(generators: Sequence[Generator], key: int) -> Iterator[None]:
    """Seed generators for a block, and put them back after it.

    Example:
        >>> own = [random.Random(3)]
        >>> with own_keyed(own, 7):
        ...     first = own[0].random()
        >>> own[0].random() == random.Random(3).random() != first
        True
    """
    states = [state_of(generator) for generator in generators]
    try:
        seed_own(generators, key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            _put_back(generator, state)


def seed_own(generators: Sequence[Generator], key: int) -> None:
    """Seed generators, each with a number of its own that follows from the key."""
    for number, generator in enumerate(generators):
        seed = derive(key, "own", number)
        if isinstance(generator, random.Random):
            generator.seed(seed)
        elif isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif hasattr(generator, "bit_generator"):
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state
        else:
            generator.seed([seed & 0xFFFFFFFF, seed >> 32])


def state_of(generator: Generator) -> Any:
    """What it takes to put a generator back."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def mark(generators: Sequence[Generator]) -> str:
    """Of the states of generators: another one once something was drawn from one of them.

    Example:
        >>> own = [random.Random(0)]
        >>> before = mark(own)
        >>> _ = own[0].random()
        >>> mark(own) == before
        False
    """
    digest = hashlib.sha256()
    for state in map(state_of, generators):
        digest.update(pickle.dumps(state.tolist() if isinstance(state, torch.Tensor) else state))
    return digest.hexdigest()


def _put_back(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _is_generator(thing: object) -> bool:
    if isinstance(thing, random.Random):
        return not isinstance(thing, random.SystemRandom)
    if isinstance(thing, torch.Generator):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        thing, (numpy.random.Generator, numpy.random.RandomState)
    )


def _is_of_process(generator: Generator) -> bool:
    if generator is getattr(random, "_inst", None) or generator is torch.default_generator:
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and generator is getattr(numpy.random.mtrand, "_rand", None)


def _parts(thing: Any) -> list[object]:
    """What a thing is made of, as far as it is worth looking."""
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, dict):
        return list(thing.values()) if len(thing) <= _LONGEST else []
    if isinstance(thing, list | tuple | set):
        return list(thing) if len(thing) <= _LONGEST else []
    return list(getattr(thing, "__dict__", {}).values())


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
        >>> class Pictures(torch.utils.data.Dataset):
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
    found = {purity(part) for part in _pieces(dataset)}
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


def _pieces(dataset: object) -> Sequence[object]:
    if type(dataset) is Subset:
        return [dataset.dataset]
    if type(dataset) is ConcatDataset:
        return dataset.datasets
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return list(parts.values() if isinstance(parts, dict) else parts)
    return []
