"""Nested mappings as a whole: merged, flattened, compared, copied, frozen and pickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Self

from danling.annotations import Section
from danling.errors import ConfigError
from danling.frozen import copy_value, freeze_value, plain_value, thaw_value
from danling.jsonable import canonical_json, short_repr, to_jsonable
from danling.typed_mapping import TypedMapping

__all__ = ["ABSENT", "NestedMapping", "difference", "flatten", "without_keys"]

ABSENT: Final = "(absent)"
"""What stands in a difference for a key that one of the two does not have."""


class NestedMapping(TypedMapping):
    """A tree of typed values."""

    def merge(self, other: Mapping[str, Any]) -> Self:
        """Set the values of another mapping, section by section, and return this one.

        Sections are merged; every other value is replaced.

        Example:
            >>> from danling import Config
            >>> Config(optim={"lr": 0.1, "name": "sgd"}).merge({"optim": {"lr": 1.0}})
            Config(optim=Config(lr=1.0, name='sgd'))
        """
        self._merge(other, self._conversion())
        self._require_complete()
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists with the values as they are."""
        return {key: plain_value(value) for key, value in self.items()}

    def flatten(self) -> dict[str, Any]:
        """All values by dotted key; lists, dicts and empty sections are values.

        Example:
            >>> from danling import Config
            >>> Config(optim={"lr": 0.1}, layers=[1, 2]).flatten()
            {'optim.lr': 0.1, 'layers': [1, 2]}
        """
        return flatten(self)

    @classmethod
    def unflatten(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of values by dotted key: the inverse of `flatten`."""
        return cls(values)  # type: ignore[call-arg]  # a dot in a key nests anyway

    def copy(self) -> Self:
        """A deep copy that is not frozen."""
        copied = type(self).__new__(type(self))
        copied._restore(self._path, {key: copy_value(value) for key, value in self._values.items()})
        return copied

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "values": self._values, "frozen": self._frozen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state["path"], state["values"])
        self._frozen = state["frozen"]

    @property
    def frozen(self) -> bool:
        """Whether values cannot be set."""
        return self._frozen

    def freeze(self) -> Self:
        """Refuse changes from now on, in sections, lists and dicts too."""
        for key, value in self._values.items():
            self._values[key] = freeze_value(value, self._where(key))
        self._frozen = True
        return self

    def unfreeze(self) -> Self:
        """Allow changes again."""
        for key, value in self._values.items():
            self._values[key] = thaw_value(value)
        self._frozen = False
        return self

    def __eq__(self, other: object) -> bool:
        """Two configurations are equal if they would be saved alike."""
        if not isinstance(other, Mapping):
            return NotImplemented
        mine, others = plain_value(self), plain_value(other)
        try:
            return bool(to_jsonable(mine) == to_jsonable(others))
        except ConfigError:  # they hold what cannot be saved
            return bool(mine == others)

    __hash__ = None  # type: ignore[assignment]  # as every mutable mapping

    def __repr__(self) -> str:
        items = [f"{key}={_repr(value)}" for key, value in self.items()]
        line = f"{type(self).__name__}({', '.join(items)})"
        if len(line) <= 88 and "\n" not in line:
            return line
        body = "".join(f"    {item},\n".replace("\n", "\n    ").rstrip(" ") for item in items)
        return f"{type(self).__name__}(\n{body})"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a mapping and of the sections in it by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Section) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = plain_value(value)
    return flat


def difference(mine: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Pairs of the values that would not be saved alike, by key."""
    pairs = {key: (mine.get(key, ABSENT), others.get(key, ABSENT)) for key in {**mine, **others}}
    return {key: pair for key, pair in pairs.items() if not _saved_alike(*pair)}


def without_keys(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A mapping and the mappings in it without some keys; a mapping left empty goes too.

    Example:
        >>> without_keys({"size": 8, "workers": 2, "train": {"workers": 4}}, ["workers"])
        {'size': 8}
    """
    kept = {}
    for key, value in values.items():
        rest = without_keys(value, keys) if isinstance(value, Mapping) else value
        if key not in keys and rest != {}:
            kept[key] = rest
    return kept


def _saved_alike(one: Any, other: Any) -> bool:
    try:
        return canonical_json(one) == canonical_json(other)
    except ConfigError:  # one of them cannot be saved at all
        return one is other or repr(one) == repr(other)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return short_repr(value)
