"""YAML as people expect it: the scalars of YAML 1.2, and no key twice.

`1e-3` is a float, `no` is a string, `010` is ten and a date is a string. Keys are always strings,
as written. Values are built from the parser's events, so that deep nesting, aliases that repeat
each other without end and tags that make objects are refused before they cost anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from danling.config.scalars import FLOAT, INT, read_scalar
from danling.errors import ConfigError
from danling.files.json import MAX_DEPTH, to_plain

__all__ = ["dump_yaml", "key_lines", "load_yaml"]


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_MAX_REPEATED = 100_000  # values that aliases may repeat in all: a bomb has billions
_TAG = "tag:yaml.org,2002:"
_SCALAR_TYPES: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "null": type(None),
}


def load_yaml(text: str, source: str = "YAML text") -> Any:
    r"""Read one YAML document.

    Args:
        text: The document.
        source: The name of the file in messages.

    Raises:
        ConfigError: The text is not YAML, has a key twice, a tag that makes an object, an alias
            to itself, too many aliases or too much nesting. The message has the file and line.

    Example:
        >>> load_yaml("lr: 1e-3\nnorm: no\n")
        {'lr': 0.001, 'norm': 'no'}
    """
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise _error(source, mark, f"not valid YAML: {problem}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    return builder.document


def key_lines(text: str) -> dict[str, int]:
    """The line of every key of a document that `load_yaml` has read, by dotted key."""
    lines: dict[str, int] = {}

    def visit(node: Any, path: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name = f"{path}{key.value}"
            lines[name] = key.start_mark.line + 1
            visit(value, f"{name}.")

    visit(yaml.compose(text, Loader=_Loader), "")
    return lines


def dump_yaml(value: Any) -> str:
    """YAML text of a value in the order of its keys; `load_yaml` reads the same value back.

    Raises:
        ConfigError: Something in the value cannot be saved (see `danling.files.json.to_jsonable`).

    Example:
        >>> print(dump_yaml({"betas": (0.9, 0.999), "mode": "no", "eps": "1e-3"}), end="")
        betas: [0.9, 0.999]
        mode: 'no'
        eps: '1e-3'
    """
    try:
        text: str = yaml.dump(
            to_plain(value),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=100,
        )
    except UnicodeError as error:
        raise ConfigError(f"a string is not valid Unicode and cannot be saved: {error}") from error
    return text


@dataclass
class _Open:
    """A mapping or list whose end has not been read yet."""

    value: Any
    anchor: str | None
    size: int = 1  # values in it, those that aliases repeat included
    key: str | None = None
    merged: list[Any] = field(default_factory=list)


class _Builder:
    """Builds the value of a document from the events of the parser."""

    def __init__(self, source: str) -> None:
        self.document: Any = None
        self._source = source
        self._documents = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._repeated = 0

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._error(event, "a second document starts here; a config is one document")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if self._wants_key():
            self._key(event, event.value, merge=event.value == "<<" and event.implicit[0])
            return
        value = self._scalar_value(event)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._add(event, value, 1)

    def _scalar_value(self, event: yaml.ScalarEvent) -> Any:
        if event.tag in (None, "!"):
            plain = event.tag is None and event.implicit[0]
            return self._read(event) if plain else event.value
        kind = _SCALAR_TYPES.get(event.tag.removeprefix(_TAG))
        if kind is None:
            raise self._tag_error(event)
        value = event.value if kind is str else self._read(event)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self._error(event, f"{event.value!r} is not a {kind.__name__}")
        return value

    def _read(self, event: yaml.ScalarEvent) -> Any:
        try:
            return read_scalar(event.value)
        except ConfigError as error:
            raise self._error(event, str(error)) from error

    def _alias(self, event: yaml.AliasEvent) -> None:
        name = event.anchor
        if any(level.anchor == name for level in self._open):
            raise self._error(event, f"the alias *{name} stands inside what it repeats")
        if name not in self._anchors:
            raise self._error(event, f"there is no anchor &{name} before this alias")
        value, size = self._anchors[name]
        self._repeated += size
        if self._repeated > _MAX_REPEATED:
            raise self._error(event, f"the aliases repeat more than {_MAX_REPEATED} values")
        if self._wants_key():
            self._key(event, value)
        else:
            self._add(event, value, size)

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if is_mapping else "seq")):
            raise self._tag_error(event)
        if self._wants_key():
            raise self._error(event, "a list or mapping cannot be a key")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        self._open.append(_Open({} if is_mapping else [], event.anchor))

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        level = self._open.pop()
        for merged in level.merged:  # what stands in the mapping wins, then the first merged
            for key, value in merged.items():
                level.value.setdefault(key, value)
        if level.anchor:
            self._anchors[level.anchor] = (level.value, level.size)
        self._add(event, level.value, level.size)

    def _wants_key(self) -> bool:
        return (
            bool(self._open)
            and isinstance(self._open[-1].value, dict)
            and (self._open[-1].key is None)
        )

    def _key(self, event: Any, key: Any, merge: bool = False) -> None:
        level = self._open[-1]
        if not isinstance(key, str):
            raise self._error(event, f"the key {key!r} is not a string")
        if not merge and key in level.value:
            raise self._error(event, f"the key {key!r} appears twice in one mapping")
        level.key = _MERGE if merge else key

    def _add(self, event: Any, value: Any, size: int) -> None:
        if not self._open:
            self.document = value
            return
        level = self._open[-1]
        level.size += size
        if isinstance(level.value, list):
            level.value.append(value)
            return
        assert level.key is not None
        if level.key is _MERGE:
            level.merged += self._merge_sources(event, value)
        else:
            level.value[level.key] = value
        level.key = None

    def _merge_sources(self, event: Any, value: Any) -> list[Any]:
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._error(event, "'<<' takes a mapping or a list of mappings")
        return sources

    def _tag_error(self, event: Any) -> ConfigError:
        tag = event.tag.replace(_TAG, "!!")
        return self._error(event, f"the tag {tag} is refused: a config holds plain values only")

    def _error(self, event: Any, problem: str) -> ConfigError:
        return _error(self._source, event.start_mark, problem)


_MERGE = "".join(("<", "<"))  # an object of its own, told from the quoted key "<<" by identity


def _error(source: str, mark: Any, problem: str) -> ConfigError:
    where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
    return ConfigError(f"{where}: {problem}")


class _Dumper(_BaseDumper):  # type: ignore[misc]  # the base is one of two classes
    """Quotes strings that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: Any, value: list[Any]) -> Any:
    flat = not any(isinstance(item, (list, dict)) for item in value)
    return dumper.represent_sequence(_TAG + "seq", value, flow_style=flat)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_implicit_resolver(_TAG + "int", INT, list("-+0123456789"))
_Dumper.add_implicit_resolver(_TAG + "float", FLOAT, list("-+.0123456789"))
