"""The length of a training: the batches of an epoch, the steps of all of it, and its progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from danling.optimization.together import by_name
from danling.runner.stopping import Limits

if TYPE_CHECKING:
    from danling.data.combined import Combined
    from danling.data.loader import Loader
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["accum_steps_in", "count_steps", "moves_of_schedules", "progress_of"]


def accum_steps_in(runner: AccelerateRunner, epoch: int) -> int:
    """The micro-batches of one optimizer step in an epoch: a callback may have a schedule."""
    options = runner.config.accelerate
    key = "gradient_accumulation_steps"
    steps = int(options[key]) if key in options else 1  # get() composes an error and drops it
    for schedule in accumulation_schedules(runner):
        steps = schedule(epoch, steps)
    return steps


def accumulation_schedules(runner: AccelerateRunner) -> list[Callable[[int, int], int]]:
    """The schedules of callbacks for the micro-batches of a step, by the epoch."""
    found = (getattr(callback, "accum_steps_in", None) for callback in runner.callbacks)
    return [schedule for schedule in found if schedule is not None]


def count_steps(runner: AccelerateRunner) -> int | None:
    """The optimizer steps of the whole training; None where its length is unknown."""
    limits = Limits.of(runner.config)
    steps = limits.max_steps
    if limits.max_epochs < math.inf and runner.data.can_train:
        loader = runner.data.whole("train")
        if (length := loader.batches_in(runner.epoch)) is not None:
            steps = min(steps, steps_until(runner, int(limits.max_epochs), loader, length))
    return None if math.isinf(steps) else int(steps)


def moves_of_schedules(runner: AccelerateRunner, interval: str) -> int | None:
    """The moves of a schedule of an interval in the whole training; None where unknown."""
    epochs = Limits.of(runner.config).max_epochs
    if interval == "epoch":
        return None if math.isinf(epochs) else int(epochs)
    if len(by_name(runner.optimizer)) < 2:
        return runner.total_steps
    known = epochs < math.inf and runner.data.can_train and runner.steps_per_epoch is not None
    return int(epochs) * (runner.steps_per_epoch or 0) if known else None


def steps_until(
    runner: AccelerateRunner, epochs: int, loader: Loader | Combined, length: int
) -> int:
    """The optimizer steps until that many epochs are completed, those that were taken too."""
    if len(runner._loss_tags) > 1:  # each takes its own: those of one of them
        return epochs * math.ceil(length / runner.accum_steps)
    done = loader.done(runner._places_now())
    left = math.ceil(max(length - done, 0) / runner.accum_steps)
    later = range(runner.epoch + 1, epochs)
    if loader.is_length_fixed and not accumulation_schedules(runner):
        left += len(later) * math.ceil(length / runner.accum_steps)
    else:
        left += sum(steps_in(runner, loader, epoch) for epoch in later)
    return runner.global_step + (left if runner.epoch < epochs else 0)


def steps_in(runner: AccelerateRunner, loader: Loader | Combined, epoch: int) -> int:
    """The optimizer steps of an epoch."""
    return math.ceil((loader.batches_in(epoch) or 0) / accum_steps_in(runner, epoch))


def progress_of(runner: AccelerateRunner) -> float:
    """The share of the training that is done, from 0 to 1; NaN where its length is unknown.

    Where several optimizers step apart, it is the share of the batches.
    """
    training = runner._training
    total = None if training is None else training.total_steps
    total = runner.total_steps if total is None else total
    if not total:
        return math.nan
    done = min(runner.global_step / total, 1.0)
    if len(runner._loss_tags) < 2 or not (batches := runner.batches_per_epoch):
        return done
    by_steps = runner.global_step / (runner.config.max_steps or math.inf)
    epochs = (runner.epoch + runner.batch_index / batches) / (runner.config.max_epochs or math.inf)
    return min(max(by_steps, epochs), 1.0)
