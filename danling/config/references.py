"""References in files and on the command line: `${optim.lr}` is the value of another key.

A text that is one reference has the value of that key, with its type; within a longer text the
value is written out. `$${x}` is the text `${x}` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from danling.config.frozen import copy_value
from danling.config.mapping import MissingKeyError, TypedMapping
from danling.errors import ConfigError
from danling.files.json import dumps

__all__ = ["References", "escape"]


_REFERENCE = re.compile(r"(?<!\$)\$\{([^{}]*)\}")
_ESCAPED = re.compile(r"\$(\$+\{)")


def escape(value: Any) -> Any:
    """A plain value whose texts are read back as they are."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return re.sub(r"\$+(?=\{)", r"\g<0>$", value) if isinstance(value, str) else value


class References:
    """The keys of a configuration that refer to other keys, until all are known."""

    def __init__(self) -> None:
        self._pending: dict[str, Any] = {}

    def take(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """The values without those that refer to others, which are kept for `fill`.

        Raises:
            ConfigError: A key is set inside a section that is a reference.
        """
        plain: dict[str, Any] = {}
        for key, value in values.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                inner = self.take(value, f"{path}.")
                if inner:
                    plain[key] = inner
                continue
            self._forget(path)
            if _refers(value):
                self._pending[path] = value
            else:
                plain[key] = _unescaped(value)
        return plain

    def fill(self, config: TypedMapping) -> None:
        """Set every key that refers to another one.

        Raises:
            ConfigError: A key does not exist, or keys refer to each other in a circle.
        """
        while self._pending:
            self._fill(next(iter(self._pending)), config, ())

    def _forget(self, path: str) -> None:
        for key in list(self._pending):
            if key == path or key.startswith(f"{path}."):
                del self._pending[key]
            elif path.startswith(f"{key}."):
                raise ConfigError(
                    f"config.{path}: {key!r} refers to another section ({self._pending[key]}), so "
                    "no key in it can be set beside; write the section out"
                )

    def _fill(self, key: str, config: TypedMapping, chain: tuple[str, ...]) -> None:
        if key in chain:
            circle = " -> ".join((*chain[chain.index(key) :], key))
            raise ConfigError(f"config.{key}: the keys refer to each other in a circle: {circle}")
        value = self._resolved(self._pending[key], key, config, (*chain, key))
        config._put(key, value, config._conversion())
        self._pending.pop(key, None)

    def _resolved(self, value: Any, key: str, config: TypedMapping, chain: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [self._resolved(item, key, config, chain) for item in value]
        if isinstance(value, dict):
            return {k: self._resolved(item, key, config, chain) for k, item in value.items()}
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._read(whole, key, config, chain)

        def written(match: re.Match[str]) -> str:
            found = self._read(match, key, config, chain)
            return found if isinstance(found, str) else dumps(found).strip('"')

        return _unescaped(_REFERENCE.sub(written, value))

    def _read(
        self, match: re.Match[str], key: str, config: TypedMapping, chain: tuple[str, ...]
    ) -> Any:
        target = match[1].strip()
        for other in list(self._pending):
            if target == other or target.startswith(f"{other}.") or other.startswith(f"{target}."):
                self._fill(other, config, chain)
        try:
            return copy_value(config[target])
        except MissingKeyError as error:
            raise ConfigError(
                f"config.{key}: {match[0]} refers to no key: {error}; "
                f"write ${match[0]} for the text itself"
            ) from error


def _refers(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_refers, value))
    if isinstance(value, dict):
        return any(map(_refers, value.values()))
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def _unescaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    return _ESCAPED.sub(r"\1", value) if isinstance(value, str) else value
