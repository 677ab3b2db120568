"""The keys of a configuration as data: type, default, help text and identity.

The help text of a key is the comment beside or above it. The text of `--help` and the reference
pages are made of this.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danling.config.fields import Field
from danling.config.mapping import TypedMapping
from danling.config.settings import SETTINGS, Settings
from danling.config.types import describe_type, is_section, union_arms

__all__ = ["Key", "describe_keys", "field_comments", "section_of"]


_LINTER = re.compile(r"^(noqa|type:|pylint:|pragma:|fmt:)")


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: The dotted key.
        annotation: The type of its values.
        default: The value where none is set, or `danling.config.fields.REQUIRED`.
        help: The comment beside or above it; empty where there is none.
        in_run_id: Whether the value is part of the `run_id`.
        not_in_run_id: Names of keys in it, at any depth, that are not, though it is.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    in_run_id: bool
    not_in_run_id: tuple[str, ...]

    @property
    def type(self) -> str:
        """The type in words."""
        return describe_type(self.annotation)


def describe_keys(cls: type[TypedMapping] = TypedMapping) -> tuple[list[Key], list[Key]]:
    """The keys that a class declares, those of its sections included, and those of every run.

    Args:
        cls: A class of configurations; without one there are only the keys of every run.

    Example:
        >>> from danling import Config
        >>> class Training(Config):
        ...     width: int = 8
        >>> own, settings = describe_keys(Training)
        >>> [(key.name, key.type, key.default, key.in_run_id) for key in own]
        [('width', 'an int', 8, True)]
        >>> settings[0].name, settings[0].in_run_id, settings[0].help
        ('project_root', False, 'folder that holds the directories of all runs')
    """
    settings = {name: found for name, found in SETTINGS.items() if name not in cls._fields}
    own = list(_keys(cls, cls._fields, cls._blank("config"), outer=(cls,)))
    return own, list(_keys(Settings, settings, {}))


def section_of(declared: Field) -> type[TypedMapping] | None:
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


def _keys(
    cls: type,
    fields: Mapping[str, Field],
    defaults: Mapping[str, Any],
    prefix: str = "",
    outer: tuple[type, ...] = (),
) -> Iterator[Key]:
    comments = _inherited_comments(cls)
    for name, declared in fields.items():
        value = defaults.get(name, declared.default)
        section = section_of(declared)
        if section is not None and section._fields and section not in outer:
            inner = value if isinstance(value, Mapping) else section._blank(name)
            nested = f"{prefix}{name}."
            yield from _keys(section, section._fields, inner, nested, (*outer, section))
        else:
            excluded = tuple(sorted(declared.excluded_keys))
            text = comments.get(name, "")
            yield Key(prefix + name, declared.annotation, value, text, declared.in_run_id, excluded)


def _inherited_comments(cls: type) -> dict[str, str]:
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is Settings or "_fields" in vars(base):
            comments |= field_comments(base)
    return comments
