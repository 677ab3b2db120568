"""The text of `--help`, made of the annotations, defaults and comments of a configuration."""

from __future__ import annotations

import ast
import inspect
import io
import re
import shutil
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from danling.annotations import MAPPING_TYPES, is_section, union_arms
from danling.fields import REQUIRED, Field
from danling.jsonable import dumps, to_plain
from danling.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from danling.config import Config

__all__ = ["config_help", "declared_flags", "field_comments", "section_of"]

_COLUMN = 30
_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
_LINTER = re.compile(r"^(noqa|type:|pylint:|pragma:|fmt:)")


def config_help(cls: type[Config], program: str) -> str:
    """Everything that can be given on the command line, one entry per key.

    Args:
        cls: Class of the configuration.
        program: Name of the script.
    """
    lines = [f"usage: {program} [--config FILE ...] [--print-config] [--KEY VALUE ...]", ""]
    document = vars(cls).get("__doc__")
    if document and cls._fields:
        lines += [inspect.cleandoc(document).partition("\n\n")[0], ""]
    lines += ["options:"]
    lines += _entry("-h, --help", "show this text and leave")
    lines += _entry("--config FILE", "read keys from FILE; several are merged, flags come last")
    lines += _entry("--print-config", "show the configuration as YAML and leave")
    for title, flags in zip(("keys:", "keys of every run:"), _all_flags(cls), strict=True):
        entries = [line for flag in flags for line in _entry(flag.usage, flag.help)]
        lines += ["", title, *entries] if entries else []
    return "\n".join(lines) + "\n"


def declared_flags(cls: type[Config]) -> list[str]:
    """The flags of all declared and well-known keys."""
    own, settings = _all_flags(cls)
    return [flag.usage.partition(" ")[0].replace("[no-]", "") for flag in own + settings]


def section_of(declared: Field) -> type[Config] | None:
    """The class of sections that a field takes, if it takes one."""
    return next((arm for arm in union_arms(declared.annotation) if is_section(arm)), None)


def field_comments(cls: type) -> dict[str, str]:
    """Comments beside or above the annotated names of a class; none where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
        body = ast.parse(source).body[0]
        comments = _comments(source)
    except (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError):
        return {}
    found = {}
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            text = " ".join(comments[line].text for line in lines if line in comments)
            found[node.target.id] = text or _above(comments, node.lineno)
    return {name: text for name, text in found.items() if text}


@dataclass(frozen=True)
class _Comment:
    text: str
    alone: bool


@dataclass(frozen=True)
class _Flag:
    usage: str
    help: str


def _comments(source: str) -> dict[int, _Comment]:
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("#: ").strip()
        if token.type == tokenize.COMMENT and not _LINTER.match(text):
            comments[token.start[0]] = _Comment(text, token.line.lstrip().startswith("#"))
    return comments


def _above(comments: Mapping[int, _Comment], line: int) -> str:
    block: list[str] = []
    while (comment := comments.get(line - 1)) and comment.alone:
        block.insert(0, comment.text)
        line -= 1
    return " ".join(block)


def _flags(
    cls: type,
    fields: Mapping[str, Field],
    defaults: Mapping[str, Any],
    prefix: str = "",
    outer: tuple[type, ...] = (),
) -> Iterator[_Flag]:
    comments = _inherited_comments(cls)
    for name, declared in fields.items():
        value = defaults.get(name, declared.default)
        section = section_of(declared)
        if section is not None and section._fields and section not in outer:
            inner = value if isinstance(value, Mapping) else section._blank(name)
            nested = f"{prefix}{name}."
            yield from _flags(section, section._fields, inner, nested, (*outer, section))
        else:
            yield _Flag(_usage(prefix + name, declared), _help(comments.get(name, ""), value))


def _all_flags(cls: type[Config]) -> tuple[list[_Flag], list[_Flag]]:
    """The flags of the keys that the class declares, and of those of every run."""
    settings = {name: found for name, found in SETTINGS.items() if name not in cls._fields}
    own = list(_flags(cls, cls._fields, cls._blank("config"), outer=(cls,)))
    return own, list(_flags(Settings, settings, {}))


def _inherited_comments(cls: type) -> dict[str, str]:
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is Settings or "_fields" in vars(base):
            comments |= field_comments(base)
    return comments


def _usage(key: str, declared: Field) -> str:
    flag = key.replace("_", "-")
    if union_arms(declared.annotation) == (bool,):
        return f"--[no-]{flag}"
    return f"--{flag} {_metavar(declared.annotation)}"


def _metavar(annotation: Any) -> str:
    arms = union_arms(annotation)
    if len(arms) > 1:
        metavar = "|".join(_metavar(arm) for arm in arms if arm is not bool)
        return f"[{metavar}]" if bool in arms else metavar
    kind = get_origin(arms[0]) or arms[0]
    if kind is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(arms[0])) + "}"
    if kind in (list, tuple):
        inner = [argument for argument in get_args(arms[0]) if argument is not Ellipsis] or [Any]
        return " ".join(map(_metavar, inner)) + (" ..." if len(inner) == 1 else "")
    if kind in (dict, *MAPPING_TYPES) or is_section(kind):
        return "JSON"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "{" + ",".join(kind.__members__) + "}"
    return _METAVARS.get(kind, "VALUE")


def _help(comment: str, default: Any) -> str:
    if default is REQUIRED:
        note = "(required)"
    elif default is None or default == {}:
        note = ""
    else:
        plain = to_plain(default)
        text = plain if isinstance(plain, str) and plain else dumps(plain)
        note = f"(default: {text})"
    return f"{comment} {note}".strip()


def _entry(usage: str, text: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    first = f"  {usage}"
    if len(first) > _COLUMN - 2 and text:
        head, first = [first], ""
    else:
        head = []
    wrapped = textwrap.wrap(text, width - _COLUMN) or [""]
    lines = [f"{first:<{_COLUMN}}{wrapped[0]}", *(" " * _COLUMN + line for line in wrapped[1:])]
    return head + [line.rstrip() for line in lines]
