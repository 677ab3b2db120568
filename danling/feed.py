"""The batches of an open epoch on their way to the loop, each with its place in its window."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from danling.evaluation import check_samples
from danling.window import Window, windowed

if TYPE_CHECKING:
    from danling.loop import LoopRunner

__all__ = ["open_feed"]

Feed = Iterator[tuple[Any, Window]]


def open_feed(runner: LoopRunner, split: str) -> tuple[Feed, int | None]:
    """The batches of the open epoch that are left, and how many the whole epoch has.

    No batch after the last one is asked for where their number is known.
    """
    runner.remember_loader(split)
    loader, done = runner.loader(split), runner.batch_index
    check_samples(runner.world, loader)
    source = loader.iterate(runner.epoch, done)
    length = loader.batches_in(runner.epoch)
    if runner.distributed and length is None:
        source = _until_one_ends(runner, source)
    feed = windowed(source, length, runner.accum_steps, done)
    if runner.distributed or {"on_fetch_start", "on_fetch_end"} & runner.callbacks.heard:
        feed = _announced(runner, feed)
    return feed if length is None else islice(feed, length - done), length


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
