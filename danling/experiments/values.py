"""Values of runs as text: durations, numbers, and names that may hold anything."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from danling.errors import ConfigError

__all__ = [
    "duration_text",
    "one_line",
    "parse_duration",
    "size_text",
    "value_text",
]


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw] ?)+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def parse_duration(text: str) -> float:
    """The seconds of a duration such as `90s`, `2d` or `1h 30m`.

    Raises:
        ConfigError: The text is no duration.

    Example:
        >>> parse_duration("1h 30m")
        5400.0
    """
    if not _DURATION.fullmatch(text.strip()):
        raise ConfigError(f"{text[:40]!r} is no duration; write 90s, 30m, 2h, 7d, 4w or 1h 30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def duration_text(seconds: float | None) -> str:
    """A duration in its two largest units at most; empty where it is unknown.

    Example:
        >>> [duration_text(seconds) for seconds in (0.4, 95, 7300, 200000)]
        ['0.4s', '1m35s', '2h1m', '2d7h']
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in units:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return "".join(parts[:2])


def size_text(size: float) -> str:
    """A number of bytes in the unit that suits it.

    Example:
        >>> [size_text(size) for size in (12, 2048, 5 << 30)]
        ['12 B', '2.0 KiB', '5.0 GiB']
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def value_text(value: Any) -> str:
    """A value as it stands in a table.

    Example:
        >>> [value_text(value) for value in (0.001, 0.94123456, 3, True, None, [1, 2])]
        ['0.001', '0.9412', '3', 'true', '', '[1, 2]']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_text(item) or 'null' for item in value)}]"
    return one_line(str(value))


def one_line(text: str) -> str:
    r"""Text that cannot move the cursor, colour the terminal or break a line.

    Control characters, and those that change the direction of text, are written as escapes.

    Example:
        >>> one_line("a\x1b[31mb\nc")
        'a\\x1b[31mb\\nc'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in _INVISIBLE else char for char in text
    )
