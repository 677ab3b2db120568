"""Accumulation windows: which micro-batches make one optimizer step together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, repeat
from typing import TYPE_CHECKING, Any

from danling.data.splits import check_samples

if TYPE_CHECKING:
    from danling.runner.loop import LoopRunner

__all__ = ["Window", "open_feed", "windowed"]


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


Feed = Iterator[tuple[Any, Window]]


def open_feed(runner: LoopRunner, split: str) -> tuple[Feed, int | None]:
    """The batches of the open epoch that are left, and how many the whole epoch has.

    No batch after the last one is asked for where their number is known, and not only claimed.
    """
    runner.remember_loader(split)
    loader, done = runner.loader(split), runner.batch_index
    check_samples(runner.world, loader)
    source = loader.iterate(runner.epoch, done)
    length = loader.batches_in(runner.epoch)
    end = length if loader.is_length_exact else None
    if runner.distributed and length is None:
        source = _until_one_ends(runner, source)
    feed = windowed(source, end, runner.accum_steps, done)
    if runner.distributed or {"on_fetch_start", "on_fetch_end"} & runner.callbacks.heard:
        feed = _announced(runner, feed)
    return feed if end is None else islice(feed, end - done), length


def _announced(runner: LoopRunner, feed: Feed) -> Feed:
    """Tell callbacks and other processes of each fetch."""
    while True:
        runner.world.begin_batch()
        runner.callbacks("on_fetch_start", runner)
        item = next(feed, None)
        if item is None:
            return
        runner.callbacks("on_fetch_end", runner, item[0])
        yield item


def _until_one_ends(runner: LoopRunner, source: Iterator[Any]) -> Iterator[Any]:
    """Batches of a source whose length nobody knows: it ends everywhere when it ends anywhere.

    Without it the other processes would wait in the next backward for ever.
    """
    end = object()
    while True:
        batch = next(source, end)
        if runner.world.maximum([batch is end])[0]:
            if batch is not end:
                runner.logger.warning(
                    "the epoch ends with the data of another process; there was more here"
                )
            return
        yield batch
