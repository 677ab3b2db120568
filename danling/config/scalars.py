"""The meaning of an unquoted word in YAML 1.2, in files and on the command line."""

from __future__ import annotations

import re
from typing import Any

from danling.errors import ConfigError

__all__ = ["FLOAT", "INT", "read_scalar"]


_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NON_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")


def read_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar in YAML 1.2.

    Raises:
        ConfigError: It is a number of more digits than Python reads.

    Example:
        >>> [read_scalar(text) for text in ("1e-3", "no", "true", "null", "010", "1:30")]
        [0.001, 'no', True, None, 10, '1:30']
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    try:
        if INT.match(text):
            return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    except ValueError as error:
        raise ConfigError(
            f"a number of {len(text)} digits is more than Python reads; put it in quotes"
        ) from error
    if FLOAT.match(text):
        return float(text)
    if _NON_FINITE.match(text):
        return float(text.replace(".", "").lower())
    return text
