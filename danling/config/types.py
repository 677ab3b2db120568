"""The types that a field may have, and the conversion of values to them without loss."""

from __future__ import annotations

import json
import sys
import types
from abc import abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, NoReturn, Self, Union, get_args, get_origin

from danling.config.scalars import read_scalar
from danling.errors import ConfigError, did_you_mean
from danling.files.json import MAX_DEPTH, short_repr

__all__ = [
    "MAPPING_TYPES",
    "SCALAR_TYPES",
    "UNION_TYPES",
    "Conversion",
    "NestingError",
    "Section",
    "describe_type",
    "from_omegaconf",
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


def from_omegaconf(value: Any, path: str) -> Any:
    """The plain value of an OmegaConf container; every other value as it is.

    Raises:
        ConfigError: A value in it is missing or refers to one that does not exist.
    """
    if type(value).__module__.partition(".")[0] != "omegaconf":
        return value
    try:
        library = sys.modules["omegaconf"].OmegaConf
        return library.to_container(value, resolve=True, throw_on_missing=True)
    except Exception as error:
        kind = type(value).__name__
        raise ConfigError(f"{path}: this {kind} cannot be read: {error}") from error


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


_REFUSED = object()


class NestingError(Exception):
    """A value contains itself or is nested too deeply to be copied."""


@dataclass
class Conversion:
    """Converts values to the types of fields.

    Attributes:
        section: The class of the sections that are made of mappings without a type.
        is_text: Whether strings are text from the command line, which may mean a number.
        depth: Containers around the value that is being converted.
    """

    section: type[Section]
    is_text: bool = False
    depth: int = 0

    def convert(self, value: Any, annotation: Any, path: str) -> Any:
        """The value in the given type.

        Raises:
            ConfigError: It cannot be converted without loss; the message names the path, the
                value and the type.
            NestingError: The value contains itself or is nested too deeply.
        """
        origin = get_origin(annotation) or annotation
        value = from_omegaconf(value, path)
        if annotation is Any:
            return self._untyped(value, path)
        if origin is Literal:
            return self._literal(value, annotation, path)
        if origin in UNION_TYPES:
            return self._union(value, annotation, path)
        if origin in (list, tuple, dict, *MAPPING_TYPES) or is_section(origin):
            return self._container(value, annotation, path)
        if issubclass(origin, Enum):
            return self._enum(value, origin, path)
        converted = _scalar(_item(value), annotation)
        if converted is _REFUSED:
            _refuse(value, annotation, path)
        return converted

    def read(self, value: Any, path: str) -> Any:
        """The list or mapping that a text of the command line is; every other value as it is."""
        is_written = self.is_text and isinstance(value, str) and value[:1] in ("[", "{")
        return _read_text(value, path) if is_written else from_omegaconf(value, path)

    def _untyped(self, value: Any, path: str) -> Any:
        if self.is_text and isinstance(value, str):
            return replace(self, is_text=False)._untyped(_read_text(value, path), path)
        if isinstance(value, Mapping) and all(type(key) is str for key in value):
            kind = type(value) if isinstance(value, Section) else self.section
            return self._inside(kind._nested, value, path)
        if isinstance(value, list) or type(value) is tuple:
            items = self._items(value, [Any] * len(value), path)
            return tuple(items) if isinstance(value, tuple) else items
        return value

    def _items(self, values: Any, annotations: list[Any], path: str) -> list[Any]:
        self._enter()
        items = [
            self.convert(value, annotation, f"{path}[{index}]")
            for index, (value, annotation) in enumerate(zip(values, annotations, strict=True))
        ]
        self.depth -= 1
        return items

    def _inside(self, nested: Any, value: Any, path: str) -> Any:
        self._enter()
        section = nested(value, path, self)
        self.depth -= 1
        return section

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NestingError

    def _container(self, value: Any, annotation: Any, path: str) -> Any:
        origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
        if self.is_text and isinstance(value, str):
            if value[:1] in ("[", "{"):
                parsed = _read_text(value, path)
                return replace(self, is_text=False)._container(parsed, annotation, path)
            value = [value] if origin in (list, tuple) else value
        if origin is list and isinstance(value, (list, tuple)):
            return self._items(value, [*(arguments or [Any])] * len(value), path)
        if origin is tuple and isinstance(value, (list, tuple)):
            return self._tuple(value, annotation, path)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            _refuse(value, annotation, path)
        if origin is dict:
            kinds = [arguments[1] if arguments else Any] * len(value)
            return dict(zip(value, self._dict_values(value, kinds, path), strict=True))
        if is_section(origin):
            kind = type(value) if isinstance(value, origin) else origin
            return self._inside(kind._nested, value, path)
        return self._inside(self.section._nested, value, path)

    def _dict_values(self, value: Mapping[str, Any], kinds: list[Any], path: str) -> list[Any]:
        self._enter()
        pairs = zip(value.items(), kinds, strict=True)
        values = [self.convert(item, kind, f"{path}.{key}") for (key, item), kind in pairs]
        self.depth -= 1
        return values

    def _tuple(self, value: Any, annotation: Any, path: str) -> tuple[Any, ...]:
        arguments = get_args(annotation) or (Any, ...)
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            _refuse(value, annotation, path)
        return tuple(self._items(value, list(arguments), path))

    def _union(self, value: Any, annotation: Any, path: str) -> Any:
        arms = list(get_args(annotation))
        if self.is_text and isinstance(value, str):
            if types.NoneType in arms and value.lower() in ("none", "null"):
                return None
            # the more special reading of a text first: anything is a string
            arms.sort(key=lambda arm: (arm is str, arm is Path))
            number = _number_of(value)
            if type(number) in arms and int in arms:  # 1.0 is a float where it may be one
                return self.convert(number, type(number), path)
        elif type(value) in arms:
            return self.convert(value, type(value), path)
        problems = []
        depth = self.depth
        for arm in arms:
            try:
                return self.convert(value, arm, path)
            except ConfigError as error:
                self.depth = depth
                problems += [error] if arm is not types.NoneType else []
        if len(problems) == 1 and not any(arm in SCALAR_TYPES[:-1] for arm in arms):
            raise problems[0]  # it names the place inside the value
        return _refuse(value, annotation, path)

    def _literal(self, value: Any, annotation: Any, path: str) -> Any:
        readings = [value]
        if self.is_text and isinstance(value, str):
            readings.append(read_scalar(value))
        for choice in get_args(annotation):
            if any(type(item) is type(choice) and item == choice for item in readings):
                return choice
        return _refuse(value, annotation, path)

    def _enum(self, value: Any, kind: type[Enum], path: str) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
        for member in kind:
            if type(member.value) is type(value) and member.value == value:
                return member
        near = did_you_mean(str(value), kind.__members__)
        raise ConfigError(f"{path}: {short_repr(value)} is not a {kind.__name__}; {near}")


def _scalar(value: Any, kind: Any) -> Any:
    text = value if isinstance(value, str) and not isinstance(value, Enum) else None
    if kind is types.NoneType:
        return None if value is None else _REFUSED
    if kind is bool:
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
        return value if isinstance(value, bool) else _REFUSED
    if kind is str:
        plain = value.as_posix() if isinstance(value, PurePath) else text
        return _REFUSED if plain is None else str(plain)
    if kind is Path:
        return Path(value) if text is not None or isinstance(value, PurePath) else _REFUSED
    number = _number(value) if text is None else _number_of(text)
    if number is None:
        return _REFUSED
    return _to_float(number) if kind is float else _to_int(number)


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _number_of(text: str) -> int | float | None:
    """The number that a text is, in the notations of YAML, JSON files and Python."""
    if text in ("NaN", "nan", "Infinity", "inf", "-Infinity", "-inf"):
        return float(text)
    try:
        return _number(read_scalar(text.strip()))
    except ConfigError:  # it has too many digits
        return None


def _to_float(number: float) -> Any:
    try:
        return float(number)
    except OverflowError:
        return _REFUSED


def _to_int(number: float) -> Any:
    if isinstance(number, int):
        return int(number)
    return int(number) if number.is_integer() else _REFUSED


def _item(value: Any) -> Any:
    """The Python number of a scalar of numpy or torch."""
    library = type(value).__module__.partition(".")[0]
    if library in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _read_text(text: str, path: str) -> Any:
    """The value of a word of the command line if no type is declared: JSON, YAML, else itself."""
    if text[:1] in ("[", "{", '"'):
        try:
            return json.loads(text)
        except ValueError:
            from danling.config.yaml import load_yaml  # most runs start without YAML

            return load_yaml(text, path)
    return read_scalar(text) if text else text


def _refuse(value: Any, annotation: Any, path: str) -> NoReturn:
    got = f"{short_repr(value)} ({type(value).__name__})"
    quotes = "; put it in quotes" if annotation is str and type(value) in (int, float, bool) else ""
    raise ConfigError(f"{path}: expected {describe_type(annotation)}, got {got}{quotes}")
