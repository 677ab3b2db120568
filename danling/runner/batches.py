"""The batches of an epoch, each in its window, and the step of an optimizer that evaluates them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from danling.errors import DataError, RunError
from danling.optimization.closures import MISSING, Evaluation, MicroBatch, WindowClosure
from danling.optimization.windows import Tally, Window, windowed
from danling.runner.resume import restore_streams
from danling.runner.steps import evaluation, samples_read

if TYPE_CHECKING:
    from danling.distributed.world import World
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.progress import OpenBatch, OpenEpoch

_logger = logging.getLogger(__name__)

__all__ = [
    "no_longer_in_use",
    "nothing_to_train_on",
    "step_with",
    "until_any_ends",
    "windows_of",
]


def windows_of(
    runner: AccelerateRunner, splits: Sequence[str], mode: str | None, epoch: OpenEpoch
) -> Iterator[tuple[Any, Window]]:
    """The batches of the open epoch that are left, each with its place in its window.

    No batch after the last one is asked for where their number is known, and not only claimed.
    """
    places = epoch.places(runner.batch_index)
    reading = runner.data.read(splits, mode, runner.epoch, places)
    epoch.begin(reading, runner.batch_index)
    batches, done, loader = reading.batches, reading.done, reading.loader
    length = reading.length if reading.is_exact else None
    epoch.read = None if loader is None else samples_read(loader, length)
    if runner.distributed and not reading.is_exact:
        batches = until_any_ends(runner.world, batches)
    windows = windowed(batches, length, runner.accum_steps, done, tally_of(runner))
    if runner.distributed or {"on_fetch_start", "on_fetch_end"} & runner.callbacks.active:
        windows = announced(runner, windows)
    restore_streams(runner)  # last of all: making an iterator may draw
    return windows if length is None else islice(windows, length - done)


def tally_of(runner: AccelerateRunner) -> Tally | None:
    """The tally of what windows hold; None where all whole windows hold the same."""
    by_samples = runner.config.accumulate == "samples"
    if not (by_samples or runner.distributed or runner.accum_steps > 1):
        return None
    runner._tallied = tally = Tally(
        runner.world, runner.optimization, runner.device, by_samples=by_samples
    )
    return tally


def announced(
    runner: AccelerateRunner, windows: Iterator[tuple[Any, Window]]
) -> Iterator[tuple[Any, Window]]:
    """Tell callbacks and other processes of each fetch."""
    while True:
        runner.world.begin_batch()
        runner.callbacks("on_fetch_start", runner)
        item = next(windows, None)
        if item is None:
            return
        runner.callbacks("on_fetch_end", runner, item[0])
        yield item


def step_with(
    runner: AccelerateRunner,
    batch: OpenBatch,
    output: Any,
    closure: Callable[[], Any],
    optimizer: str | None,
) -> None:
    """The step of an optimizer that evaluates the batches of its window itself."""
    if output is not MISSING:
        raise RunError("step() takes an output or a closure, and here are both")
    optimization, window, hooks = runner.optimization, batch.window, runner.callbacks
    name, add = optimization.choose(optimizer), runner.logbook.meter.add
    parts = optimization.pending.setdefault(name, [])
    samples = runner._samples_in(batch.batch)
    parts.append(MicroBatch(partial(evaluation, closure, samples), window))
    batch.has_gradients = True
    if not window.closes:
        return
    batch.stepped = False
    del optimization.pending[name]

    def first(found: Sequence[Evaluation]) -> None:
        for each in found:
            add(runner._loss_tags[name], each.loss.detach().clone(), each.samples)
            for key, value in each.metrics.items():
                add(f"train/{key}", value, each.samples)
        batch.output = found[-1].output
        hooks("on_before_step", runner)

    evaluate = partial(WindowClosure, parts, name, optimization, runner.logbook, runner.world)
    evaluate(runner.model, first).step()
    runner.counters.global_step += 1
    runner.is_log_step |= runner.counters.global_step % runner._log_interval == 0
    hooks("on_step", runner)
    if optimization.used_norm is not None:
        add("optim/grad_norm", optimization.used_norm)
    optimization.zero_grad()
    batch.stepped, batch.has_gradients = True, False


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


def no_longer_in_use(splits: Sequence[str], *, is_open: bool) -> str:
    """The message for an iterator of batches that is asked for more when it is not its turn."""
    if not is_open:
        return "these batches are of an epoch that is over: ask runner.batches() for new ones"
    return (
        f"the batches of {' and '.join(map(repr, splits))} were left for others that were asked "
        "for in the same epoch, and an epoch reads one thing at a time, so that a resumed run "
        "knows its place: read them one after the other, or together, with "
        'runner.batches("labelled", "unlabelled")'
    )


def nothing_to_train_on(splits: Sequence[str]) -> DataError:
    """The error for an epoch that ends before its first batch."""
    named = " and ".join(map(repr, splits))
    return DataError(f"the split {named} has no batches: there is nothing to train on")
