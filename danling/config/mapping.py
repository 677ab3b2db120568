"""Mappings of typed values, read and written by attribute or by dotted key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, Self, get_args

from danling.config.fields import REQUIRED, Field
from danling.config.frozen import copy_value, freeze_value, plain_value, thaw_value
from danling.config.types import Conversion, NestingError, Section, is_section
from danling.errors import ConfigError, did_you_mean
from danling.files.json import canonical_json, short_repr, to_jsonable

__all__ = [
    "ABSENT",
    "MissingKeyError",
    "TypedMapping",
    "difference",
    "flatten",
    "names_taken",
    "without_keys",
]


_ROOT = "config"
_INTERNAL = {"_values", "_path", "_frozen", "_state", "_drawn_seed", "_made", "_read"}

ABSENT: Final = "(absent)"
"""The value in a difference for a key that one of the two does not have."""


class MissingKeyError(ConfigError, KeyError, AttributeError):
    """A key that is not there was read, as an item or as an attribute."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class TypedMapping(Section):
    """Keys with values, some of which are sections: mappings of the same kind.

    Mappings become sections, and lists and dicts are copied when they are set, so that nothing is
    shared with the caller or contains itself. A dot in a key always goes into a section.
    """

    _fields: ClassVar[Mapping[str, Field]] = {}
    _reserved: ClassVar[frozenset[str]] = frozenset()
    _is_open: ClassVar[bool] = True
    _values: dict[str, Any]
    _path: str
    _frozen: bool
    _read: set[str]
    _state: dict[str, Callable[[], Any]]
    _drawn_seed: int | None
    _made: dict[str, Any]

    # reading

    def __getitem__(self, key: Any) -> Any:
        head, _, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        value = self._values[head] if head in self._values else self._unset(head)
        self._read.add(head)
        if not rest:
            return value
        if isinstance(value, Mapping) and (isinstance(value, Section) or rest in value):
            return value[rest]
        raise MissingKeyError(f"{self._where(key)} does not exist: {head!r} is {short_repr(value)}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_values" not in self.__dict__:  # copy and pickle ask early
            raise AttributeError(name)
        return self[name]

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        head, _, rest = key.partition(".")
        if not self._is_set(head):
            return False
        value = self._values[head]
        return not rest or (isinstance(value, Mapping) and rest in value)

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self._values if self._is_set(key)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})

    # writing

    def __setitem__(self, key: Any, value: Any) -> None:
        self._set(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INTERNAL:
            object.__setattr__(self, name, value)
        else:
            self._set(name, value)

    def __delitem__(self, key: Any) -> None:
        self._require_writable(key)
        if key not in self:
            raise MissingKeyError(self._unknown(key))
        head, _, rest = key.partition(".")
        if rest:
            del self._values[head][rest]
        elif key in self._fields:
            raise ConfigError(f"{self._where(key)} is a declared field and cannot be deleted")
        else:
            del self._values[key]

    def __delattr__(self, name: str) -> None:
        del self[name]

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is set first where it is not; a default does not count."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        """Delete a key and return its value, or `default` where it is not set."""
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    # the whole tree

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
        if not self._is_top:  # who takes a section as a whole has read it
            self._mark_read()
        return self._plain()

    def resolved(self) -> dict[str, Any]:
        """Return `to_dict` with the defaults of keys that are not set."""
        return self.to_dict()

    def flatten(self) -> dict[str, Any]:
        """Return all values by dotted key; lists, dicts and empty sections are values.

        Example:
            >>> from danling import Config
            >>> Config(optim={"lr": 0.1}, layers=[1, 2]).flatten()
            {'optim.lr': 0.1, 'layers': [1, 2]}
        """
        return flatten(self)

    @classmethod
    def unflatten(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of values by dotted key: the inverse of `flatten`."""
        config = cls._nested(values, _ROOT, cls._conversion())  # a dot in a key nests anyway
        config._require_complete()
        return config

    def copy(self) -> Self:
        """A deep copy that is not frozen."""
        copied = type(self).__new__(type(self))
        copied._restore(self._path, {key: copy_value(value) for key, value in self._values.items()})
        copied._read = self._read  # what is read from either of them is read
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
        items = [f"{key}={_repr(value)}" for key, value in self._items()]
        line = f"{type(self).__name__}({', '.join(items)})"
        if len(line) <= 88 and "\n" not in line:
            return line
        body = "".join(f"    {item},\n".replace("\n", "\n    ").rstrip(" ") for item in items)
        return f"{type(self).__name__}(\n{body})"

    # which values were read

    def unread(self) -> list[str]:
        """The keys that were set and that nobody has read so far, by dotted key.

        A copy and its original are one in this. A declared key that has its default does not
        count; of a section that nobody has looked at, only its own key is named.

        Example:
            >>> from danling import Config
            >>> config = Config(optim={"lr": 0.1, "wd": 0.0}, width=3, model={"depth": 2})
            >>> config.optim.lr
            0.1
            >>> config.unread()
            ['optim.wd', 'width', 'model']
        """
        found: list[str] = []
        for key, value in self._items():
            if isinstance(value, TypedMapping) and value:
                inner = [f"{key}.{name}" for name in value.unread()]
                found += inner if key in self._read else [key] if inner else []
            elif key not in self._read and self._is_chosen(key, value):
                found.append(key)
        return found

    def _is_chosen(self, key: str, value: Any) -> bool:
        field = self._field(key)
        return field is None or not bool(value == field.default)

    def _mark_read(self) -> None:
        for key, value in self._values.items():
            self._read.add(key)
            if isinstance(value, TypedMapping):
                value._mark_read()

    def _items(self) -> list[tuple[str, Any]]:
        """Keys and values that are set; looking at them this way does not read them."""
        return [(key, self._values[key]) for key in self]

    def _plain(self) -> dict[str, Any]:
        return {key: plain_value(value) for key, value in self._items()}

    # what a kind of configuration defines

    @classmethod
    def _conversion(cls, is_text: bool = False) -> Conversion:
        raise TypeError(f"{cls.__name__} does not say what its sections are")

    def _field(self, key: str) -> Field | None:
        return self._fields.get(key)

    def _is_set(self, key: str) -> bool:
        return key in self._values

    def _is_reserved(self, key: str) -> bool:
        """Whether attribute access would find something else under the key."""
        return key in self._reserved

    def _require_allowed(self, key: str) -> None:
        """Refuse keys that cannot be set."""

    def _unset(self, key: str) -> Any:
        """The result of reading a key that is not set."""
        raise MissingKeyError(self._unknown(key))

    def _known_keys(self) -> set[str]:
        return {*self._values, *self._fields}

    def name_run(self, keys: Iterable[str]) -> bool:
        """Name the run after keys that were set, where there is a run that nobody named.

        Returns:
            Whether the run has got a name.
        """
        return False

    # the mechanics

    @classmethod
    def _blank(cls, path: str) -> Self:
        section = cls.__new__(cls)
        section._begin(path)
        return section

    @classmethod
    def _nested(cls, mapping: Mapping[str, Any], path: str, conversion: Conversion) -> Self:
        section = cls._blank(path)
        section._merge(mapping, conversion)
        return section

    def _restore(self, path: str, values: dict[str, Any]) -> None:
        self._values, self._path, self._frozen, self._read = values, path, False, set()

    def _begin(self, path: str = _ROOT) -> None:
        """Start with the defaults, converted anew so that instances share nothing."""
        self._restore(path, {})
        for name, field in self._fields.items():
            where = self._where(name)
            if field.default is not REQUIRED:
                self._values[name] = field.convert(field.default, where, self._conversion())
            elif is_section(field.annotation):
                self._values[name] = field.annotation._blank(where)

    @property
    def _is_top(self) -> bool:
        return self._path == _ROOT

    def _where(self, key: object) -> str:
        return f"{self._path}.{key}"

    def _unknown(self, key: object) -> str:
        inside = [name for name in self.flatten() if name.endswith(f".{key}")]
        near = f"did you mean {' or '.join(map(repr, inside))}?" if inside else ""
        near = near or did_you_mean(str(key), self._known_keys())
        return f"{self._path} has no key {key!r}; {near}"

    def _set(self, key: Any, value: Any) -> None:
        self._put(key, value, self._conversion())
        changed = self._values[key.partition(".")[0]]
        if isinstance(changed, TypedMapping):
            changed._require_complete()

    def _put(self, key: Any, value: Any, conversion: Conversion) -> None:
        self._require_writable(key)
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{self._path}: {key!r} is not a key; a key is a non-empty string")
        head, _, rest = key.partition(".")
        if rest:
            self._put_inside(head, rest, value, conversion)
            return
        if self._is_reserved(key):
            raise ConfigError(
                f"{self._where(key)}: {key!r} is an attribute of every config and would hide the "
                "value; rename the key, or declare a field of type dict for the mapping"
            )
        self._require_allowed(key)
        self._values[key] = self._converted(key, value, conversion)

    def _converted(self, key: str, value: Any, conversion: Conversion) -> Any:
        field, outermost = self._field(key), conversion.depth == 0
        try:
            if field is not None:
                return field.convert(value, self._where(key), conversion)
            return conversion.convert(value, Any, self._where(key))
        except NestingError:
            if not outermost:
                raise
            conversion.depth = 0
            return value  # `check` reports it together with all else that cannot be saved

    def _put_inside(self, head: str, rest: str, value: Any, conversion: Conversion) -> None:
        field = self._field(head)
        child = self[head] if field or head in self._values else None
        if isinstance(child, TypedMapping):
            child._put(rest, value, conversion)
        elif child is None:
            self._put(head, {rest: value}, conversion)
        elif isinstance(child, dict) and field:
            kinds = get_args(field.annotation) or (str, Any)
            item = conversion.convert(value, kinds[1], self._where(f"{head}.{rest}"))
            self._put(head, {**child, rest: item}, self._conversion())
        else:
            raise ConfigError(
                f"{self._where(head)} is {short_repr(child)} and no section: {rest!r} cannot be set"
            )

    def _merge(self, other: Mapping[str, Any], conversion: Conversion) -> None:
        for key, value in other.items():
            mine = self._values.get(key)
            if isinstance(mine, TypedMapping) and _merges_into(value, mine):
                mine._merge(value, conversion)
            else:
                self._put(key, value, conversion)

    def _require_writable(self, key: object) -> None:
        if self._frozen:
            raise ConfigError(
                f"{self._where(key)} is frozen; change a copy (config.copy()), or unfreeze() first"
            )

    def _require_complete(self) -> None:
        missing = list(self._missing())
        if missing:
            raise ConfigError(f"no value and no default: {', '.join(missing)}")

    def _missing(self) -> Iterator[str]:
        yield from (self._where(name) for name in self._fields if name not in self._values)
        for value in self._values.values():
            if isinstance(value, TypedMapping):
                yield from value._missing()


def _merges_into(value: Any, section: Section) -> bool:
    """Whether a value adds to a section; a section of another class replaces it."""
    if isinstance(value, TypedMapping) and value._fields:
        return type(value) is type(section)
    return isinstance(value, Mapping)


def names_taken(cls: type) -> frozenset[str]:
    """Names that attribute access finds on the class, so that they cannot be keys."""
    names = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    taken = (name for name, value in names.items() if not isinstance(value, Field))
    return frozenset(taken) | _INTERNAL


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a mapping and of the sections in it by dotted key."""
    flat: dict[str, Any] = {}
    items = values._items() if isinstance(values, TypedMapping) else values.items()
    for key, value in items:
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
