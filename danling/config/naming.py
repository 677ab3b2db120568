"""The name of a run that nobody named: the keys that its command line set, with their values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from danling.files.json import dumps
from danling.identity.redaction import is_secret_name, mask

__all__ = ["made_name", "pairs_of", "values_at"]

_LONGEST: Final = 80  # of the 200 bytes that a name may have
_LONGEST_VALUE: Final = 24
_PAIR: Final = re.compile(r"[\w.]+=\S*")
_NOT_IN_NAMES: Final = re.compile(r"[^\w.,=+-]+")  # not in the names of folders, or not in words


def values_at(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The values of those keys that are there; a section gives the keys in it.

    Example:
        >>> values_at({"optim": {"lr": 0.1, "decay": 0.0}, "seed": 3}, ["optim", "seed", "name"])
        {'optim.lr': 0.1, 'optim.decay': 0.0, 'seed': 3}
    """
    found: dict[str, Any] = {}
    for key in keys:
        head, _, rest = key.partition(".")
        if head not in values:
            continue
        value = values[head]
        if isinstance(value, Mapping):
            inner = values_at(value, [rest] if rest else value)
            found |= {f"{head}.{name}": each for name, each in inner.items()}
        elif not rest:
            found[head] = value
    return found


def made_name(values: Mapping[str, Any], before: str = "") -> str:
    """A name such as `lr=0.01 seed=3`, or an empty text where there is nothing to name.

    A key is shortened to its last part where no other ends so. Secrets are left out, paths and
    names with an owner are shortened to their last part, and pairs that have no room are counted.

    Args:
        values: The values that were set, by dotted key.
        before: The name in a file that was read; one that was made in this way is gone on with,
            and its values are replaced.

    Example:
        >>> made_name({"optim.lr": 0.01, "seed": 3, "data.root": "/data/digits"})
        'lr=0.01 seed=3 root=digits'
        >>> made_name({"seed": 4}, before="lr=0.01 seed=3")
        'lr=0.01 seed=4'
    """
    pairs = pairs_of(before)
    if before and not pairs:
        return before
    for key, value in values.items():
        if not is_secret_name(key):
            pairs[_short(key, values)] = _text(value)
    shown = [f"{key}={text}" for key, text in pairs.items()]
    return _joined([pair for pair in shown if mask(pair) == pair])


def pairs_of(name: str) -> dict[str, str]:
    """The keys and values of a name that `made_name` has made, and none of any other.

    Example:
        >>> pairs_of("lr=0.01 seed=3"), pairs_of("my first run")
        ({'lr': '0.01', 'seed': '3'}, {})
    """
    words = name.split()
    is_made = all(map(_PAIR.fullmatch, words))
    return dict(word.split("=", 1) for word in words) if is_made else {}


def _short(key: str, others: Collection[str]) -> str:
    last = key.rpartition(".")[2]
    ends = [other for other in others if other.rpartition(".")[2] == last]
    return last if len(ends) == 1 else key


def _text(value: Any) -> str:
    if isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2]
    elif isinstance(value, (list, tuple)):
        text = ",".join(map(_text, value))
    else:
        text = "none" if value is None else dumps(value)
    return _NOT_IN_NAMES.sub("_", text)[:_LONGEST_VALUE].rstrip(".")


def _joined(pairs: Sequence[str]) -> str:
    """The first pairs, as many as have room, and the number of the others."""
    name = ""
    for index, pair in enumerate(pairs):
        longer = f"{name} {pair}".lstrip()
        if len(longer.encode()) > _LONGEST:
            return f"{name} +{len(pairs) - index}".lstrip()
        name = longer
    return name
