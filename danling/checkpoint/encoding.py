"""The values that a checkpoint may hold, and how the rest is written with it.

A checkpoint is read with `torch.load(weights_only=True)`, which builds tensors and plain Python
values and runs no code of the file. `encode` therefore refuses at save time, with its path, what
could not be read back, and writes a few common types (numpy, paths, dates, enums) as tagged dicts
that `decode` turns back. Nothing is copied: what needs no tag is passed on as it is, tensors that
share memory go on sharing it, and a state dict stays the very object that `state_dict()` returned.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch

from danling.errors import CheckpointError
from danling.files.json import MAX_DEPTH

__all__ = ["TAG", "Placeholder", "decode", "encode"]


TAG = "__danling__"
"""Key of a dict that stands for a value of another type."""

_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype}
    | {torch.device}
)
_MAPPINGS = frozenset({dict, OrderedDict, Counter})
_CONTAINERS = _MAPPINGS | {list, tuple}
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_MAX_ITEM = 32  # bytes of a complex number of numpy's longest kind
_MAX_SHARED = 2_000_000
_TENSOR_ITEMS = 32  # that a tensor is made of in a file, at most
_SHOWN_KEYS = 8  # of a path in a message
_DATES: dict[str, type[datetime] | type[date] | type[time]] = {
    "datetime": datetime,
    "date": date,
    "time": time,
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placeholder:
    """Stands for a tensor whose data is in another file; it is read as a tensor on `meta`."""

    shape: torch.Size
    dtype: torch.dtype


class _UnsupportedError(Exception):
    """Collects the keys on the way up from a value that cannot be saved."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.keys: list[Any] = []


def encode(value: Any) -> Any:
    """The form in which `value` is written: plain values and tensors as they are, the rest tagged.

    Raises:
        CheckpointError: Something in it cannot be read back safely; the message has its path.

    Example:
        >>> encode({"loss": 0.5, "where": Path("runs")})
        {'loss': 0.5, 'where': {'__danling__': 'path', 'value': 'runs'}}
        >>> encode({"callbacks": {"timer": {"clock": print}}})
        Traceback (most recent call last):
        danling.errors.CheckpointError: cannot be saved: callbacks['timer']['clock'] is \
builtins.builtin_function_or_method; a checkpoint holds tensors, numbers, strings, None, lists, \
dicts, sets, numpy arrays, paths, dates and enums: return one of these from state_dict()
    """
    _check_sharing(value)
    try:
        return _encode(value, 0)
    except _UnsupportedError as error:
        path = _path(error.keys)
        raise CheckpointError(f"cannot be saved: {path} {error.problem}") from None


def decode(value: Any) -> Any:
    """Turns what `encode` returned back into what it was given.

    An enum comes back as its member if its class is imported by then (a file never makes Python
    import anything), else as the member's name, with a warning in the log.

    Raises:
        CheckpointError: A tag is unknown: the file was written by a newer version.
        ValueError: The value is not one that `encode` returned; other errors of Python's may say
            so, too.

    Example:
        >>> decode(encode({"where": Path("runs")})) == {"where": Path("runs")}
        True
    """
    return _decode(value, 0)


def _decode(value: Any, depth: int) -> Any:
    kind = type(value)
    if depth > MAX_DEPTH + 1 and kind in _CONTAINERS:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if kind in _MAPPINGS:
        if TAG in value:
            return _decode_tagged(value, depth)
        return _replaced(value, _changes(value.items(), _decode, depth))
    if kind is list or kind is tuple:
        return _replaced(value, _changes(enumerate(value), _decode, depth))
    return value


def _encode(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind in _TENSORS:
        return _plain_tensor(value)
    if depth > MAX_DEPTH:  # what is written must be readable, from any depth of Python's stack
        raise _UnsupportedError(f"contains itself, or is nested deeper than {MAX_DEPTH} levels")
    if kind in _MAPPINGS:
        return _encode_mapping(value, depth)
    if kind is list or kind is tuple:
        return _replaced(value, _changes(enumerate(value), _encode, depth))
    if kind is set:
        for item in value:
            _require_key(item, "the element")
        return value
    return _encode_other(value)


def _check_sharing(value: Any) -> None:
    """Refuses what `danling.checkpoint.archive` would: a walk that shared values make endless.

    What a walk meets is counted with each container visited once. One that is in itself is left to
    `_encode`, which has its path.
    """
    totals: dict[int, int] = {}
    distinct = 0
    tensors: set[int] = set()
    met: set[int] = set()
    pending = [(value, False)]
    while pending:
        outer, is_counted = pending.pop()
        inner = _items(outer)
        if not is_counted:
            if id(outer) in met:
                continue
            met.add(id(outer))
            pending.append((outer, True))
            pending += ((item, False) for item in inner if type(item) in _CONTAINERS)
            continue
        tensors.update(id(item) for item in inner if type(item) in _TENSORS)
        distinct += len(inner)
        totals[id(outer)] = sum(
            _TENSOR_ITEMS if type(item) in _TENSORS else totals.get(id(item), 0) + 1
            for item in inner
        )
        if totals[id(outer)] > _MAX_SHARED + distinct + _TENSOR_ITEMS * len(tensors):
            raise CheckpointError(
                "cannot be saved: values are shared so often that a walk would meet more than "
                f"{_MAX_SHARED} of them: save each once, and their numbers in its place"
            )


def _items(value: Any) -> Collection[Any]:
    if type(value) in _MAPPINGS:
        return value.values()  # type: ignore[no-any-return]
    return value if type(value) in _CONTAINERS else ()


def _encode_mapping(value: dict[Any, Any], depth: int) -> Any:
    for key in value:
        if type(key) is not str:
            _require_key(key, "the key")
    value = _replaced(value, _changes(value.items(), _encode, depth))
    return {TAG: "dict", "value": list(value.items())} if TAG in value else value


def _require_key(key: Any, role: str) -> None:
    kind = type(key)
    if kind is tuple:
        for item in key:
            _require_key(item, role)
    elif kind not in _ATOMS or kind is bytearray:
        raise _UnsupportedError(f"has {role} {key!r} ({_name(kind)}): use a string or a number")


def _changes(
    items: Iterable[tuple[Any, Any]], convert: Callable[[Any, int], Any], depth: int
) -> dict[Any, Any]:
    """The items that `convert` replaces by another object: mostly none."""
    changes = {}
    for key, item in items:
        if type(item) in _ATOMS:
            continue
        try:
            converted = convert(item, depth + 1)
        except _UnsupportedError as error:
            error.keys.append(key)
            raise
        if converted is not item:
            changes[key] = converted
    return changes


def _replaced(value: Any, changes: dict[Any, Any]) -> Any:
    if not changes:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(changes.get(index, item) for index, item in enumerate(value))
    copied = value.copy()
    # a state dict carries `_metadata`, by which modules load older versions of themselves
    if hasattr(value, "__dict__"):
        vars(copied).update(vars(value))
    for key, item in changes.items():  # the update() of a Counter would add
        copied[key] = item
    return copied


def _plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise _UnsupportedError("is a tensor on the meta device, which holds no data")
    if tensor.__dict__ or tensor._backward_hooks:  # attributes may be anything; the data is kept
        return tensor.detach()
    return tensor


def _encode_other(value: Any) -> Any:
    kind = type(value)
    if kind is Placeholder:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, Enum) and value.name in kind.__members__:
        return {TAG: "enum", "class": f"{kind.__module__}:{kind.__qualname__}", "value": value.name}
    if isinstance(value, PurePath):
        return {TAG: "path", "value": str(value)}
    if kind in _DATES.values():
        return {TAG: kind.__name__, "value": value.isoformat()}
    if kind is timedelta:
        return {TAG: "timedelta", "value": (value.days, value.seconds, value.microseconds)}
    if kind.__module__ == "numpy":
        return _encode_numpy(value)
    raise _unsupported(kind)


def _encode_numpy(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        raise _unsupported(type(value))
    if isinstance(value, np.ndarray):
        # torch takes native byte order only, and warns about memory it may not write
        native = value.astype(
            value.dtype.newbyteorder("="), order="C", copy=not value.flags.writeable
        )
        try:
            tensor = torch.from_numpy(native)
        except TypeError:
            raise _UnsupportedError(f"is a numpy array of {value.dtype}; use a list") from None
        return {TAG: "numpy.ndarray", "dtype": value.dtype.str, "value": tensor}
    if isinstance(value, np.generic) and type(value.item()) in _ATOMS:
        return {TAG: "numpy.generic", "dtype": value.dtype.str, "value": value.item()}
    raise _unsupported(type(value))


def _decode_tagged(value: dict[str, Any], depth: int) -> Any:
    kind, content = value[TAG], value.get("value")
    if kind == "dict" and isinstance(content, list):
        return {key: _decode(item, depth + 1) for key, item in content}
    if kind == "path":
        return Path(str(content))
    if kind in _DATES:
        return _DATES[kind].fromisoformat(str(content))
    if kind == "timedelta":
        days, seconds, microseconds = content or (0, 0, 0)
        return timedelta(days, seconds, microseconds)
    if kind == "enum":
        return _decode_enum(str(value.get("class")), str(content))
    if kind in ("numpy.ndarray", "numpy.generic"):
        import numpy as np

        array = content.numpy() if isinstance(content, torch.Tensor) else np.asarray(content)
        dtype = np.dtype(value["dtype"])
        if dtype.itemsize > max(_MAX_ITEM, array.dtype.itemsize):
            raise ValueError(f"a numpy value has items of {dtype.itemsize} bytes")
        typed = array.astype(dtype, copy=False)
        return typed if kind == "numpy.ndarray" else typed[()]
    raise CheckpointError(f"a value of type {kind!r} was written by a newer version of DanLing")


def _decode_enum(address: str, name: str) -> Any:
    module, _, qualname = address.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Enum) and name in found.__members__:
        return found[name]
    _logger.warning("the enum %s is not imported: its member is read as %r", address, name)
    return name


def _unsupported(kind: type) -> _UnsupportedError:
    return _UnsupportedError(
        f"is {_name(kind)}; a checkpoint holds tensors, numbers, strings, None, lists, dicts, "
        "sets, numpy arrays, paths, dates and enums: return one of these from state_dict()"
    )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _path(keys: list[Any]) -> str:
    if not keys:
        return "the checkpoint"
    first, *rest = reversed(keys)
    shown = "".join(f"[{key!r}]" for key in rest[:_SHOWN_KEYS])
    return f"{first}{shown}{'[...]' if len(rest) > _SHOWN_KEYS else ''}"


def unnamed(states: dict[str, Any]) -> Any:
    """A single part's state stands alone."""
    if not states:
        return None
    return states[""] if list(states) == [""] else {"by_name": states}


def named(state: Any) -> dict[str, Any]:
    """The opposite of `unnamed`."""
    if state is None:
        return {}
    return dict(state["by_name"]) if list(state) == ["by_name"] else {"": state}
