"""Copies of values, and lists and dicts that refuse to be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from danling.config.types import Section
from danling.errors import ConfigError

__all__ = [
    "FrozenDict",
    "FrozenList",
    "copy_value",
    "freeze_value",
    "plain_value",
    "rebuild",
    "thaw_value",
]


def copy_value(value: Any) -> Any:
    """A copy that shares no section, list or dict with the value."""
    return rebuild(value, "", lambda section: section.copy())


def plain_value(value: Any) -> Any:
    """The value with its sections as plain dicts."""
    return rebuild(value, "", lambda section: section._plain())


def freeze_value(value: Any, path: str) -> Any:
    """The value with its sections frozen, its lists and dicts replaced by frozen ones."""
    return rebuild(value, path, lambda section: section.freeze(), FrozenList, FrozenDict)


def thaw_value(value: Any) -> Any:
    """The value as it was before `freeze_value`."""
    return rebuild(value, "", lambda section: section.unfreeze())


class FrozenList(list[Any]):
    """A list in a frozen configuration."""

    def __init__(self, values: Any, path: str) -> None:
        super().__init__(values)
        self._path = path

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"{self._path} is frozen; change a copy of the config: config.copy()")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> Any:
        return type(self), (list(self), self._path)


class FrozenDict(dict[str, Any]):
    """A dict in a frozen configuration."""

    def __init__(self, values: Any, path: str) -> None:
        super().__init__(values)
        self._path = path

    _refuse = FrozenList._refuse
    update = pop = popitem = clear = setdefault = _refuse
    __setitem__ = __delitem__ = __ior__ = _refuse

    def __reduce__(self) -> Any:
        return type(self), (dict(self), self._path)


def _list(values: list[Any], path: str) -> list[Any]:
    return values


def _dict(values: dict[str, Any], path: str) -> dict[str, Any]:
    return values


def rebuild(
    value: Any,
    path: str,
    section: Callable[[Any], Any],
    make_list: Callable[[list[Any], str], Any] = _list,
    make_dict: Callable[[dict[str, Any], str], Any] = _dict,
) -> Any:
    """Apply `section` to every section in the value and build its lists and dicts anew."""

    def build(value: Any, path: str) -> Any:
        if isinstance(value, Section):
            return section(value)
        if type(value) in (list, tuple, FrozenList):
            items = [build(item, f"{path}[{index}]") for index, item in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else make_list(items, path)
        if type(value) in (dict, FrozenDict):
            return make_dict(
                {key: build(item, f"{path}.{key}") for key, item in value.items()}, path
            )
        return value

    try:
        return build(value, path)
    except RecursionError:  # it contains itself, which `Config.check` reports
        return value
