"""The parts of a runner that are assigned after it was prepared: which, since when, and again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from danling.errors import DanLingError, RunError

__all__ = ["OPTIMIZED", "Assigned", "OfData", "Part", "leaves"]

OPTIMIZED: Final = frozenset({"model", "optimizer", "scheduler"})
"""The parts that are placed and wrapped together."""


class Part:
    """A part of a runner: an attribute that cannot be assigned between two batches of an epoch.

    It has no `__get__`, so that reading it is reading any attribute.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, runner: Any, value: Any) -> None:
        epoch = vars(runner).get("_epoch")
        if epoch is not None and epoch.is_under_way and value is not getattr(runner, self._name):
            raise RunError(
                f"{self._name} cannot be assigned between the batches of an epoch, which a resumed "
                "run could not do again: assign it in on_epoch_start or on_epoch_end, or between "
                "two epochs of your own loop"
            )
        vars(runner)[self._name] = value


class OfData:
    """An attribute of a runner that is one of its data."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, runner: Any, owner: type | None = None) -> Any:
        return self if runner is None else getattr(runner.data, self._name)

    def __set__(self, runner: Any, value: Any) -> None:
        setattr(runner.data, self._name, value)


def leaves(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """The single parts in a part by name, where it is a mapping or a list of them.

    Example:
        >>> dict(leaves("metrics", {"accuracy": max, "val": {"f1": min}}))
        {"metrics['accuracy']": <built-in function max>, "metrics['val']['f1']": <built-in ...>}
        >>> list(leaves("scheduler", None))
        []
    """
    if isinstance(part, Mapping | list | tuple):
        items = part.items() if isinstance(part, Mapping) else enumerate(part)
        for key, item in items:
            yield from leaves(f"{name}[{key!r}]", item)
    elif part is not None:
        yield name, part


class Assigned:
    """Knows which parts are others than before, so that they are used, told of and saved.

    Attributes:
        since: The epoch from which on a part was used that was not there at first, by its name.

    Example:
        >>> assigned, first = Assigned(), {"criterion": max}
        >>> assigned.take(first, epoch=0), assigned.take({"criterion": min}, epoch=2)
        ([], ['criterion'])
        >>> assigned.since
        {'criterion': 2}
    """

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self._known: dict[str, Callable[[], Any]] | None = None

    def take(self, parts: Mapping[str, Any], epoch: int) -> list[str]:
        """The names of the parts that are others than the last time; none the first time."""
        known, self._known = self._known, {name: _reference(parts[name]) for name in parts}
        if known is None:
            return []
        names = dict.fromkeys([*known, *parts])
        changed = [
            name
            for name in names
            if name not in known or name not in parts or known[name]() is not parts[name]
        ]
        self.since |= dict.fromkeys(changed, epoch)
        return changed

    def take_up(self, saved: Mapping[str, int], sure: Mapping[str, str | None]) -> list[str]:
        """Go on with what a checkpoint says; returns which parts may not be those of then.

        Args:
            saved: What `since` was.
            sure: The fingerprints that parts have, by name: they are compared with the data.
        """
        missing = [name for name in saved if name not in self.since and not sure.get(name)]
        self.since = {**saved, **self.since}
        return [_line(name, saved[name]) for name in missing]

    @contextmanager
    def explained(self, saved: Mapping[str, int]) -> Iterator[None]:
        """Say on an error of a resume which parts the run had been given while it trained."""
        try:
            yield
        except DanLingError as error:
            for name in saved:
                if name not in self.since:
                    error.add_note(_line(name, saved[name]))
            raise


def _reference(part: Any) -> Callable[[], Any]:
    """What gives the part back, and keeps it alive only where there is no other way."""
    try:
        return weakref.ref(part)
    except TypeError:
        return lambda: part


def _line(name: str, epoch: int) -> str:
    return (
        f"{name} was assigned while the run trained, for epoch {epoch}, and nobody has done it "
        "again: the callback that did can do so in load_state_dict(), or do it before the run opens"
    )
