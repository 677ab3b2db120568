"""The random generators that an object keeps for itself, as augmentation libraries do.

Seeding the generators of the process does not reach them: they remember what was drawn from them,
and begin anew in a new process. They are found by following references: from an object to its
attributes, and in code that is not of an installed library also to its slots and its class, and
from a function to its defaults, its closure and the module-level names that its code uses.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch

from danling.seed import GeneratorState, derive, generator_state

__all__ = ["Generator", "OwnGenerators", "own_generators"]


Generator = Any
"""`random.Random`, `torch.Generator`, `numpy.random.Generator` or `numpy.random.RandomState`."""

_LONGEST = 64  # a list of transforms, not one of a million samples
_DEEPEST = 8
_MOST = 10_000  # things that are looked at
_OPAQUE = (str, bytes, int, float, ModuleType, torch.Tensor, torch.nn.Module)
_OF_LIBRARIES = sys.stdlib_module_names | {"accelerate", "danling", "numpy", "torch"}
_MOST_WATCHED = 64  # places that are looked at in every batch
_FRUITLESS = 3  # changes of a container without a new generator, until it is no longer watched


def own_generators(*things: object, besides: tuple[type, ...] = ()) -> list[Generator]:
    """The generators that things keep, each once; those of the process itself are left out.

    What is in long lists, in models, and in the classes and functions of installed libraries is not
    looked for.

    Args:
        things: The objects at which the search begins.
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
    return [each.value for each in _search(things, besides, whole=True).found.values()]


class OwnGenerators:
    """The generators that things keep, each with the word that its seeds are derived from.

    Those that were in attributes when the search began are numbered. All others are known by their
    path, because processes may meet generators that are made late in different orders.

    Args:
        things: The objects at which the search begins.
        besides: Types that are passed over.

    Attributes:
        states: The state of each generator.
    """

    def __init__(self, *things: object, besides: tuple[type, ...] = ()) -> None:
        self._things = things
        self._besides = besides
        attributes = _search(things, besides, whole=False).found.values()
        self._numbered = [place.value for place in attributes]  # kept alive: known by their id
        self._numbers = {id(generator): n for n, generator in enumerate(self._numbered)}
        self._known: dict[int, GeneratorState] = {}
        self._renewals: Counter[str] = Counter()
        self._restless: Counter[int] = Counter()
        self.states: list[GeneratorState] = []
        self.look()

    def look(self) -> bool:
        """Search again; returns whether generators were found that were not there before."""
        search = _search(self._things, self._besides, whole=True)
        known, self._known, self._words = self._known, {}, []
        is_new = False
        for key, place in search.found.items():
            if key not in known:
                self._renewals[place.path] += 1
                is_new |= self._renewals[place.path] <= _FRUITLESS
            self._known[key] = known.get(key) or generator_state(place.value)
            self._words.append(self._numbers.get(key, place.path))
        self._found = search.found  # kept alive: known by their id
        self.states = list(self._known.values())
        places = [(place.holder, place.key, place.value) for place in search.open]
        sizes = [
            (container, len(container))
            for container in search.containers
            if self._restless[id(container)] < _FRUITLESS
        ]
        self._places, self._sizes = places[:_MOST_WATCHED], sizes[:_MOST_WATCHED]
        return is_new

    def changed(self) -> bool:
        """Whether generators may have been made since the last search: it costs under 1 us."""
        for holder, key, value in self._places:
            if holder.get(key) is not value:
                return True
        for container, size in self._sizes:
            if len(container) != size:
                self._restless[id(container)] += 1
                return True
        return False

    def seed(self, key: int) -> None:
        """Seed every generator with a number of its own that follows from the key."""
        for word, state in zip(self._words, self.states, strict=True):
            state.seed(derive(key, "own", word))


class _Place(NamedTuple):
    """The place in which a value was found.

    Attributes:
        path: The way to it.
        value: The value that was found there.
        holder: Its holder: `holder.get(key)` gives the value of now. None where the value cannot
            be replaced.
        key: The key of the value in its holder.
        is_users: Whether it is in code of the user, which may make a generator there later.
    """

    path: str
    value: Any
    holder: Any = None
    key: Any = None
    is_users: bool = True


@dataclass
class _Search:
    """The result of a search.

    Attributes:
        found: The place of each generator, by the id of the generator.
        open: Places that hold a generator, or nothing yet.
        containers: Attributes, lists and mappings that a generator may be added to.
    """

    found: dict[int, _Place]
    open: list[_Place]
    containers: list[Sized]


def _search(things: tuple[object, ...], besides: tuple[type, ...], whole: bool) -> _Search:
    """Look for generators, near ones first.

    Args:
        things: The objects at which the search begins.
        besides: Types that are passed over.
        whole: Whether classes, slots and functions are followed, and not only attributes.
    """
    result = _Search({}, [], [])
    seen: dict[int, object] = {}
    opaque = (*_OPAQUE, *besides) if whole else (*_OPAQUE, *besides, type, FunctionType)
    level = [_Place(str(number), thing) for number, thing in enumerate(things)]
    for _ in range(_DEEPEST):
        below: list[_Place] = []
        for place in level:
            value = place.value
            generator = is_generator(value)
            if place.holder is not None and (generator or (value is None and place.is_users)):
                result.open.append(place)
            if generator and not _is_of_process(value):
                result.found.setdefault(id(value), place)
            if generator or value is None:
                continue
            if id(value) not in seen and not isinstance(value, opaque) and len(seen) < _MOST:
                seen[id(value)] = value
                below += _places(place, result.containers, whole)
        level = below
    return result


def is_generator(thing: object) -> bool:
    """Whether a thing is a generator whose state can be set."""
    if isinstance(thing, random.Random):
        return not isinstance(thing, random.SystemRandom)
    if isinstance(thing, torch.Generator):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        thing, (numpy.random.Generator, numpy.random.RandomState)
    )


def _is_of_process(generator: Generator) -> bool:
    if generator is random._inst or generator is torch.default_generator:
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and generator is numpy.random.mtrand._rand


# What a thing refers to


def _places(place: _Place, containers: list[Sized], whole: bool) -> list[_Place]:
    """The values in an object that are worth searching, with their places."""
    path, thing, is_users = place.path, place.value, place.is_users
    if isinstance(thing, MethodType):
        parts: list[Any] = [thing.__self__, *([thing.__func__] if whole else [])]
        return _numbered(place, parts)
    if isinstance(thing, functools.partial):
        return _numbered(place, [thing.func, *thing.args, *thing.keywords.values()])
    if isinstance(thing, dict | list | tuple | set | deque):
        if is_users:
            containers.append(thing)
        if len(thing) > _LONGEST:
            return []
        return _items(path, thing, is_users) if isinstance(thing, dict) else _numbered(place, thing)
    if isinstance(thing, FunctionType):
        return [] if _is_of_library(thing) else list(_of_function(path, thing))
    if isinstance(thing, type):
        return list(_of_class(path, thing))
    return _of_object(path, thing, containers, whole)


def _of_object(path: str, thing: object, containers: list[Sized], whole: bool) -> list[_Place]:
    """The attributes of an object, and its slots and class where they are of the user."""
    is_users = not _is_of_library(type(thing))
    attributes = getattr(thing, "__dict__", None)
    if not isinstance(attributes, dict):
        attributes = {}
    elif is_users:
        containers.append(attributes)
    places = _items(path, attributes, is_users)
    if whole and is_users:
        places += [*_of_slots(path, thing), _Place(f"{path}.class", type(thing))]
    return places


def _items(path: str, mapping: Mapping[Any, Any], is_users: bool) -> list[_Place]:
    return [
        _Place(f"{path}.{key}", value, mapping, key, is_users) for key, value in mapping.items()
    ]


def _numbered(place: _Place, parts: Iterable[Any]) -> list[_Place]:
    return [
        _Place(f"{place.path}.{number}", part, is_users=place.is_users)
        for number, part in enumerate(parts)
    ]


def _of_class(path: str, kind: type) -> Iterator[_Place]:
    """The attributes of a class and of its bases, with the functions of its methods."""
    for base in kind.__mro__:
        if _is_of_library(base):
            continue
        for name, value in vars(base).items():
            inner = value
            if isinstance(value, staticmethod | classmethod):
                inner = value.__func__
            elif isinstance(value, property):
                inner = value.fget
            if inner is not value or not name.startswith("__") or isinstance(value, FunctionType):
                yield _Place(f"{path}.{name}", inner, vars(base) if inner is value else None, name)


def _of_slots(path: str, thing: object) -> Iterator[_Place]:
    holder = _Slots(thing)
    for base in type(thing).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield _Place(f"{path}.{name}", holder.get(name), holder, name)


def _of_function(path: str, function: FunctionType) -> Iterator[_Place]:
    """The defaults of a function, its closure, and the module-level names that its code uses."""
    for number, value in enumerate(function.__defaults__ or ()):
        yield _Place(f"{path}.default {number}", value)
    yield from _items(path, function.__kwdefaults__ or {}, is_users=True)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        holder = _Cell(cell)
        yield _Place(f"{path}.{name}", holder.get(name), holder, name)
    module, names = function.__globals__, _names(function.__code__)
    for name in names:
        value = module.get(name)
        if isinstance(value, ModuleType) and not _library(value.__name__):
            inside = vars(value)
            for inner in (inner for inner in names if inner in inside):
                yield _Place(f"{value.__name__}.{inner}", inside[inner], inside, inner)
        elif name in module:
            yield _Place(f"{module.get('__name__')}.{name}", value, module, name)


def _names(code: CodeType) -> list[str]:
    """The names that code and the functions within it look up, in order."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _is_of_library(thing: type | FunctionType) -> bool:
    return _library(str(thing.__module__))


@functools.cache
def _library(module: str) -> bool:
    """Whether a module is of the standard library or of an installed one."""
    if module.partition(".")[0] in _OF_LIBRARIES:
        return True
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(path).parts))


class _Slots:
    """The slots of an object, looked up as in a mapping."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def get(self, name: str) -> Any:
        return getattr(self._thing, name, None)


class _Cell:
    """A variable of an enclosing function, looked up as in a mapping."""

    def __init__(self, cell: CellType) -> None:
        self._cell = cell

    def get(self, _: str) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:  # it has no value yet
            return None
