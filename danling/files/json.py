"""Plain copies of values, and JSON text that every reader accepts.

What DanLing writes is valid JSON: `NaN` and the infinities, which JSON lacks, are written as the
strings `"NaN"`, `"Infinity"` and `"-Infinity"`, and read as numbers. A text that is one of these
words is written with a backslash before it, so that the two are never taken for one another; files
of earlier versions have no backslash, and such a text in one of them is read as the number. The
conversion is the same for files and for the identity of a run, and it is strict:
a value that would not come back from a file is an error that names its path.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from datetime import date, time
from enum import Enum
from pathlib import PurePath
from reprlib import Repr
from typing import Any

from danling.errors import ConfigError
from danling.files import filesystem

__all__ = [
    "MAX_DEPTH",
    "canonical_json",
    "dotted",
    "dumps",
    "loads",
    "read_json",
    "short_repr",
    "to_jsonable",
    "to_plain",
]


MAX_DEPTH = 100
"""Levels of nesting that are accepted; far above any real value, far below Python's stack."""

_MAX_INT_BITS = 14_000  # Python refuses to print integers of more than 4300 digits
_TORCH_NAMES = ("dtype", "device")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ESCAPED = re.compile(r"\\*(NaN|-?Infinity)")
_REPR = Repr()
_REPR.maxother = _REPR.maxstring = 60


def to_jsonable(value: Any, path: str = "") -> Any:
    """Copy a value into dicts, lists, strings, numbers, booleans and None.

    Tuples become lists, enum members their names, paths their posix form, dates their ISO form,
    scalars of numpy and torch Python numbers, torch dtypes and devices strings, and numbers that
    JSON lacks the strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

    Args:
        value: The value to copy; it is not changed.
        path: The name of the value in messages, such as `"config"`.

    Raises:
        ConfigError: Something in it is not JSON-serialisable, has a key that is not a string,
            contains itself or is nested too deeply. One error lists all of them.

    Example:
        >>> to_jsonable({"betas": (0.9, float("inf"))})
        {'betas': [0.9, 'Infinity']}
    """
    return _each_leaf(to_plain(value, path), _named)


def to_plain(value: Any, path: str = "") -> Any:
    """Like `to_jsonable`, but `NaN` and the infinities stay floats: what YAML can hold.

    Example:
        >>> to_plain({"clip": (float("inf"),)})
        {'clip': [inf]}
    """
    copier = _Copier()
    plain = copier.copy(value, path)
    if copier.problems:
        raise ConfigError(_message(copier.problems))
    return plain


def dumps(value: Any, indent: int | None = None) -> str:
    r"""JSON text of a value, from which `loads` makes the plain form of the value again.

    Raises:
        ConfigError: The errors of `to_plain`.

    Example:
        >>> print(dumps({"loss": float("nan"), "comment": "NaN"}))
        {"loss": "NaN", "comment": "\\NaN"}
    """
    return json.dumps(_each_leaf(to_plain(value), _written), indent=indent, allow_nan=False)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value that a JSON file holds; see `loads`.

    Raises:
        ConfigError: It is not a regular file, is not UTF-8, or is refused by `loads`.
        OSError: It cannot be opened or read.

    Example:
        >>> path = getfixture("tmp_path") / "run.json"
        >>> _ = path.write_text('{"status": "running"}')
        >>> read_json(path)
        {'status': 'running'}
    """
    with filesystem.open_existing(path) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(f"{path}: not a regular file")
        data = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    return loads(text, str(path))


def dotted(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values in nested mappings by dotted key; an empty mapping is a value.

    Example:
        >>> dotted({"optim": {"lr": 0.1}, "seed": 0})
        {'optim.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def loads(text: str | bytes, source: str = "JSON text") -> Any:
    """Read JSON text; duplicate keys are refused, and `"NaN"` and the infinities are numbers.

    Args:
        text: The JSON text.
        source: The name of the file in messages.

    Raises:
        ConfigError: The text is not JSON, has a key twice, is nested too deeply, or has an integer
            of more digits than Python reads (4300).

    Example:
        >>> loads('{"loss": "NaN"}')
        {'loss': nan}
        >>> loads('{"a": 1, "a": 2}', "run.json")
        Traceback (most recent call last):
        danling.errors.ConfigError: run.json: the key 'a' appears twice in one object
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConfigError(f"{source}: the key {key!r} appears twice in one object")
            result[key] = value
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if _is_deep(value):
            raise RecursionError
        return _each_leaf(value, _read)
    except json.JSONDecodeError as error:
        where = f"{source}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{where}: not valid JSON: {error.msg}") from error
    except RecursionError:
        raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 at byte {error.start}") from None
    except ConfigError:
        raise
    except ValueError:  # of no other kind: Python does not read such a number
        raise ConfigError(f"{source}: an integer has more than {_digits()} digits") from None


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, and no negative zero.

    Equal values give equal text on every machine and in every process. `1` and `1.0` are not
    equal here: in many libraries the first is a count and the second a fraction.

    Example:
        >>> canonical_json({"b": -0.0, "a": (1, 1.0)})
        '{"a":[1,1.0],"b":0.0}'
    """
    plain = _each_leaf(to_jsonable(value), _unsigned)
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def short_repr(value: Any) -> str:
    """A short form of any value for messages, without memory addresses."""
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        return f"an integer of {value.bit_length()} bits"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", _REPR.repr(value))


class _Copier:
    """Copies one value and collects everything in it that cannot be copied."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._open: set[int] = set()

    def copy(self, value: Any, path: str) -> Any:
        if isinstance(value, (Mapping, list, tuple)):
            return self._container(value, path)
        try:
            return _plain_leaf(value)
        except TypeError as error:
            return self._refuse(path, f"{_described(value)} is not JSON-serialisable; {error}")

    def _container(self, value: Any, path: str) -> Any:
        if id(value) in self._open:
            return self._refuse(path, f"this {type(value).__name__} contains itself")
        if len(self._open) >= MAX_DEPTH:
            return self._refuse(path[:200], f"nested deeper than {MAX_DEPTH} levels")
        self._open.add(id(value))
        copied: Any
        if isinstance(value, Mapping):
            copied = self._mapping(value, path)
        else:
            copied = self._list(value, path)
        self._open.remove(id(value))
        return copied

    def _mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        copied = {}
        for key, item in value.items():
            if isinstance(key, str) and not isinstance(key, Enum):
                copied[str(key)] = self.copy(item, f"{path}.{key}" if path else str(key))
            else:
                self._refuse(path, f"the key {_described(key)} is not a string; write it as one")
        return copied

    def _list(self, value: Any, path: str) -> list[Any]:
        return [self.copy(item, f"{path}[{index}]") for index, item in enumerate(value)]

    def _refuse(self, path: str, problem: str) -> None:
        self.problems.append(f"{path or 'value'}: {problem}")


def _plain_leaf(value: Any) -> Any:
    """Plain form of a value that is no container; TypeError carries the way out."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return _plain_int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, (date, time)):
        return value.isoformat()
    return _plain_foreign(value)


def _plain_int(value: int) -> int:
    if value.bit_length() > _MAX_INT_BITS:
        raise TypeError("it has more digits than Python can print: write it as a hex string")
    return int(value)


def _plain_foreign(value: Any) -> Any:
    """Scalars of numpy and torch, known by the module of their type: neither is imported."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    if library == "torch" and kind.__name__ in _TORCH_NAMES:
        return str(value)
    if library in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        item = value.item()
        if isinstance(item, (bool, int, float, str, date)):
            return _plain_leaf(item)
    raise TypeError(_way_out(value))


def _way_out(value: Any) -> str:
    if hasattr(value, "tolist"):
        return "write .tolist() of it"
    if isinstance(value, (set, frozenset)):
        return "use a sorted list"
    if isinstance(value, (bytes, bytearray)):
        return "use a hex string"
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return f'use a name ("{name}") and look it up in your code'
    return "use strings, numbers, booleans, None, lists and dicts"


def _described(value: Any) -> str:
    return f"{short_repr(value)} ({type(value).__name__})"


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "\n  ".join([f"{len(problems)} values cannot be saved:", *problems])


def _named(value: Any) -> Any:
    """A number that JSON lacks as its name."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _written(value: Any) -> Any:
    """A leaf as it is written: a text that would be read as a number has a backslash before it."""
    if isinstance(value, str):
        return f"\\{value}" if _ESCAPED.fullmatch(value) else value
    return _named(value)


def _read(value: Any) -> Any:
    """The opposite of `_written`."""
    if not isinstance(value, str) or not _ESCAPED.fullmatch(value):
        return value
    return _NON_FINITE[value] if value in _NON_FINITE else value[1:]


def _unsigned(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 + 0.0 is 0.0


def _each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each_leaf(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_leaf(item, change) for item in value]
    return change(value)


def _is_deep(value: Any) -> bool:
    """Whether a value is nested deeper than `MAX_DEPTH`; found without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _digits() -> int:
    return sys.get_int_max_str_digits()
