"""Accumulation windows: which micro-batches make one optimizer step together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

from danling.distributed.world import World

__all__ = ["Window", "until_any_ends", "windowed"]

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """The place of a micro-batch in its window.

    Attributes:
        size: What the loss is divided by.
        closes: Whether the optimizer steps after it.
        rescale: What the gradients are multiplied by before the step.
    """

    size: int = 1
    closes: bool = True
    rescale: float = 1.0


_WHOLE = Window()
_END, _UNREAD = object(), object()


def windowed(
    source: Iterator[Any], length: int | None, accumulation: int, start: int
) -> Iterator[tuple[Any, Window]]:
    """Pair batches with their windows; the last one is averaged over the micro-batches it has.

    Within a window the next batch is read before one is handed out: a source that ends before its
    length says closes the window too.

    Args:
        source: Batches.
        length: How many there are in the epoch, where that is known.
        accumulation: Micro-batches of a full window.
        start: Index of the first batch in the epoch.

    Example:
        >>> [(batch, w.size, w.closes) for batch, w in windowed(iter("abcde"), 5, 2, 0)]
        [('a', 2, False), ('b', 2, True), ('c', 2, False), ('d', 2, True), ('e', 1, True)]
        >>> [(batch, w.closes, w.rescale) for batch, w in windowed(iter("abc"), None, 2, 0)]
        [('a', False, 1.0), ('b', True, 1.0), ('c', True, 2.0)]
    """
    if accumulation == 1:
        return zip(source, repeat(_WHOLE))
    return _counted(source, length, accumulation, start)


def _counted(
    source: Iterator[Any], length: int | None, accumulation: int, start: int
) -> Iterator[tuple[Any, Window]]:
    batch = next(source, _END)
    for index in count(start):
        if batch is _END:
            return
        first = index - (index - start) % accumulation
        size = accumulation if length is None else min(accumulation, length - first)
        filled = index - first + 1
        following = _UNREAD if filled == size else next(source, _END)
        closes = filled == size or following is _END
        yield batch, Window(size, closes, size / filled if closes else 1.0)
        batch = next(source, _END) if following is _UNREAD else following


def until_any_ends(world: World, source: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches of a source of unknown length until it ends on any process.

    Without it the other processes would wait in the next backward for ever.
    """
    end = object()
    while True:
        batch = next(source, end)
        if world.maximum([batch is end])[0]:
            if batch is not end:
                _logger.warning(
                    "the epoch ends with the data of another process; there was more here"
                )
            return
        yield batch
