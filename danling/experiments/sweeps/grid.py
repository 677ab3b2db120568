"""The configurations of a sweep: `1e-3,1e-4` is two values, `0..4` is five."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from danling.errors import ConfigError
from danling.experiments.reading import read_settings
from danling.experiments.repeat.commands import text_of

__all__ = ["RANGE", "Configuration", "configurations", "drawn", "read_axes", "text_of_number"]


Configuration = dict[str, str]
"""Keys, and their values as text."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?", re.ASCII)
"""A range of numbers: its ends, and `:log` where it is even over orders of magnitude."""
_MOST = 10_000


def read_axes(flags: Sequence[str], file: str | None = None) -> dict[str, list[str]]:
    """The values of each key: of a file first, then of the command line.

    Args:
        flags: The flags, such as `["--optim.lr", "1e-3,1e-4", "--seed=0..4"]`.
        file: A YAML or JSON file of keys with lists of values.

    Raises:
        ConfigError: A flag has no value, or the file cannot be read.

    Example:
        >>> read_axes(["--optim.lr", "1e-3,1e-4", "--seed=0..2"])
        {'optim.lr': ['1e-3', '1e-4'], 'seed': ['0', '1', '2']}
    """
    axes: dict[str, list[str]] = {}
    for key, values in (read_settings(file) if file else {}).items():
        items = values if isinstance(values, list) else [values]
        axes[key] = [text_of(item) for item in items]
    words = list(flags)
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise ConfigError(f"unexpected argument {word!r}: write --optim.lr 1e-3,1e-4")
        if not equals:
            if not words or (words[0].startswith("--") and len(words[0]) > 2):
                raise ConfigError(f"{key} needs values: {key} 1,2 or {key} 0..4")
            text = words.pop(0)
        axes[key.removeprefix("--").replace("-", "_")] = _values(text)
    return axes


def configurations(axes: Mapping[str, Sequence[str]]) -> list[Configuration]:
    """The combinations of the values, each once.

    Raises:
        ConfigError: A range has no steps, or there are far too many.
    """
    for key, values in axes.items():
        for value in values:
            if RANGE.fullmatch(value):
                raise ConfigError(
                    f"--{key} {value} has no steps: list values, or draw from it with --random N"
                )
    if math.prod(len(values) for values in axes.values()) > _MOST:
        raise ConfigError(f"the grid has more than {_MOST} configurations: draw with --random N")
    found = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    return list({tuple(row.items()): row for row in found}.values())


def drawn(axes: Mapping[str, Sequence[str]], count: int, seed: int = 0) -> list[Configuration]:
    """Configurations drawn at random; the same ones for the same seed.

    A list gives one of its values, `1e-5..1e-1` a number in between, with `:log` evenly over its
    orders of magnitude.

    Raises:
        ConfigError: A range with `:log` is not above zero.
    """
    generator = random.Random(seed)
    return [{key: _drawn(key, axes[key], generator) for key in axes} for _ in range(count)]


def _drawn(key: str, values: Sequence[str], generator: random.Random) -> str:
    chosen = generator.choice(list(values))
    found = RANGE.fullmatch(chosen)
    if not found:
        return chosen
    low, high = float(found[1]), float(found[2])
    if found[3]:
        if low <= 0 or high <= 0:
            raise ConfigError(f"--{key} {chosen}: the bounds must be above zero for :log")
        return text_of_number(math.exp(generator.uniform(math.log(low), math.log(high))))
    return text_of_number(generator.uniform(low, high))


def text_of_number(number: float) -> str:
    """A number that was drawn, in six digits.

    Example:
        >>> text_of_number(0.000123456789)
        '0.000123457'
    """
    return f"{number:.6g}"


def _values(text: str) -> list[str]:
    """The values in a text; commas inside of brackets and quotes do not separate."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += (char in "[{(") - (char in "]})")
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [value for part in parts for value in _expanded(part)]


def _expanded(text: str) -> list[str]:
    found: Any = RANGE.fullmatch(text)
    if not found or found[3] or not all(re.fullmatch(r"-?\d+", end) for end in found.group(1, 2)):
        return [text]
    low, high = int(found[1]), int(found[2])
    if high < low or high - low >= _MOST:
        raise ConfigError(f"{text} is no range from a smaller to a larger number")
    return [str(number) for number in range(low, high + 1)]
