"""Types that a field may have: what their values can be saved as and read back from."""

from __future__ import annotations

import types
from abc import abstractmethod
from collections.abc import Mapping, MutableMapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Union, get_args, get_origin

from danling.errors import ConfigError

if TYPE_CHECKING:
    from danling.conversion import Conversion

__all__ = [
    "MAPPING_TYPES",
    "SCALAR_TYPES",
    "UNION_TYPES",
    "Section",
    "describe_type",
    "is_section",
    "require_supported",
    "union_arms",
]

MAPPING_TYPES = (Mapping, MutableMapping)
SCALAR_TYPES = (int, float, bool, str, Path, types.NoneType)
UNION_TYPES = (Union, types.UnionType)
_NAMES = {
    bool: "true or false",
    int: "an int",
    float: "a float",
    str: "a string",
    Path: "a path",
    types.NoneType: "null",
    Any: "any value",
}


class Section(MutableMapping[str, Any]):
    """A configuration as the value of a field."""

    @classmethod
    @abstractmethod
    def _nested(cls, mapping: Mapping[str, Any], path: str, conversion: Conversion) -> Self:
        """A section of this class with the values of a mapping."""


def is_section(kind: Any) -> bool:
    """Whether the type is a class of configurations."""
    return isinstance(kind, type) and issubclass(kind, Section)


def union_arms(annotation: Any) -> tuple[Any, ...]:
    """The types that a value may have, without None."""
    if get_origin(annotation) not in UNION_TYPES:
        return (annotation,)
    return tuple(arm for arm in get_args(annotation) if arm is not types.NoneType)


def describe_type(annotation: Any) -> str:
    """The type in words, for messages.

    Example:
        >>> describe_type(list[int] | None)
        'a list of int or null'
    """
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in UNION_TYPES:
        return " or ".join(describe_type(argument) for argument in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} values ({', '.join(_bare(item) for item in arguments)})"
    if origin in (list, tuple):
        return "a list" + (f" of {_bare(arguments[0])}" if arguments else "")
    if origin in (dict, *MAPPING_TYPES) or is_section(origin):
        return "a mapping with string keys"
    return _NAMES.get(annotation) or f"a {annotation.__name__}"


def _bare(annotation: Any) -> str:
    return describe_type(annotation).removeprefix("an ").removeprefix("a ")


def require_supported(annotation: Any, where: str) -> None:
    """Refuse a type whose values could not be saved and read back.

    Raises:
        ConfigError: The type, or one that it is made of, is not supported.
    """
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if annotation is Any:
        return
    if origin is Literal:
        if any(not isinstance(choice, (str, int, types.NoneType)) for choice in arguments):
            raise ConfigError(f"{where}: a Literal of a config holds str, int and bool; use Enum")
        return
    if origin in (list, tuple, dict, *UNION_TYPES, *MAPPING_TYPES):
        if origin in (dict, *MAPPING_TYPES) and arguments and arguments[0] is not str:
            raise ConfigError(f"{where}: keys must be strings: dict[str, ...]")
        for argument in arguments:
            if argument is not Ellipsis:
                require_supported(argument, where)
        return
    is_class = isinstance(origin, type)
    if origin in SCALAR_TYPES or (is_class and issubclass(origin, (Enum, Section))):
        return
    raise ConfigError(
        f"{where}: a config cannot save values of type {annotation!r}; use int, float, bool, str, "
        "Path, Enum, Literal, Optional, list, tuple, dict, a Config class or Any"
    )
