"""The values that a training logs, by name, averaged on their device until a number is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from danling.distributed.world import World
from danling.errors import MetricError
from danling.metrics.averages import (
    Averages,
    Meter,
    Reduction,
    Total,
    check_reduction,
    merged,
    reduce_totals,
)
from danling.metrics.metric import (
    compute,
    is_stateful,
    is_used,
    load_metric_state,
    metric_state,
    metrics_for,
    own_copies,
    reset,
)

__all__ = ["Logbook", "checked_scalar"]

_logger = logging.getLogger(__name__)


class Logbook:
    """The values of a runner: those of the open epoch, those since the last log, those of a split.

    Args:
        world: The processes over which means are taken.
        device: The device to which metrics are moved.

    Attributes:
        metrics: The metrics by name; each split works with copies of its own.
        meter: The averages of the training.
        evaluating: The split that is evaluated, if one is.
    """

    def __init__(self, world: World, device: Any) -> None:
        self.metrics: dict[str, Any] = {}
        self.meter = Meter()
        self.evaluating: str | None = None
        self._averages: Averages | None = None  # of the evaluation that runs
        self._copies: dict[tuple[str, bool], dict[str, Any]] = {}
        self._originals: dict[tuple[str, bool], dict[str, Any]] = {}  # what they are copies of
        self._reductions: dict[str, Reduction] = {}
        self._world = world
        self._device = device

    def log(
        self,
        values: Mapping[str, Any],
        *,
        n: Any = None,
        reduce: Reduction = "mean",
        on: Literal["step", "epoch"] = "step",
    ) -> None:
        """Keep values until the log interval, or until the end of the evaluation that runs.

        Args:
            values: Scalars by name.
            n: The number of samples that each is the mean of.
            reduce: The reduction of the values of a name.
            on: Whether they are logged with the steps, or with the epoch alone.

        Raises:
            MetricError: A value is no scalar, or the arguments do not go together.
        """
        if reduce != "mean" or on != "step":
            check_reduction(reduce)
            check_moment(on)
            if n is not None and reduce != "mean":
                raise MetricError(f"log(n=...) weighs a mean, and reduce={reduce!r} is none")
        averages, split = self._averages, self.evaluating or "train"
        if averages is None:
            averages = self.meter.of_window if on == "step" else self.meter.of_epoch
        for key, value in values.items():
            tag, number = key if "/" in key else f"{split}/{key}", checked_scalar(key, value)
            if self._reductions.setdefault(tag, reduce) != reduce:
                raise MetricError(
                    f"log({key!r}) has reduce={reduce!r}, and before it was "
                    f"{self._reductions[tag]!r}: give one of them another name"
                )
            if reduce == "mean":
                averages.add(tag, number, 1 if n is None else checked_scalar("n", n))
            else:
                averages.keep(tag, number, reduce)

    def metrics_of(self, split: str) -> dict[str, Any]:
        """The metrics of a split: each has copies, and so has an evaluation of `train`."""
        key = split, self.evaluating is not None
        if key not in self._copies:
            self._originals[key] = metrics_for(self.metrics, split)
            self._copies[key] = own_copies(self._originals[key], self._device)
        return self._copies[key]

    def _renewed(self, split: str) -> dict[str, Any]:
        """The metrics of a split at a beginning: of those that are assigned by now, and empty."""
        key, now = (split, self.evaluating is not None), metrics_for(self.metrics, split)
        known = self._originals.get(key)
        same = known is not None and known.keys() == now.keys()
        if known is not None and not (same and all(known[name] is now[name] for name in now)):
            _logger.info("the metrics of %r are %s from now on", split, ", ".join(now) or "none")
            self._copies.pop(key)
        metrics = self.metrics_of(split)
        reset(metrics)
        return metrics

    # The training

    def start_epoch(self) -> None:
        """Begin the means and the metrics of an epoch."""
        self.meter.start_epoch()
        self._renewed("train")

    def end_epoch(self) -> tuple[dict[str, float], dict[str, float]]:
        """The result of the open epoch by name, and what of it was not logged yet, by tag.

        A collective. What is new at the end of an epoch are metrics that are objects, and values
        that were logged for the epoch alone.
        """
        meter = self.meter
        parts = self._world.gather((meter.epoch_totals(), meter.epoch_only_totals()))
        means, own = (merged(kind) for kind in zip(*parts, strict=True))
        news = {tag: total.value for tag, total in own.items()}
        computed = compute(self.metrics_of("train"), self._world)
        news |= {f"train/{name}": value for name, value in computed.items()}
        values = {tag: total.value for tag, total in means.items()} | news
        result = {
            tag.removeprefix("train/"): value
            for tag, value in values.items()
            if tag.startswith("train/")
        }
        return result, news

    def end_interval(self) -> dict[str, Total]:
        """The totals since the last call by tag, over all processes; a collective."""
        return reduce_totals(self.meter.end_interval(), self._world.gather)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let what is logged and measured count for nothing: a batch is evaluated again."""
        before = self._averages, self._copies, self._originals
        self._averages, self._copies, self._originals = Averages(), {}, {}
        try:
            yield
        finally:
            self._averages, self._copies, self._originals = before

    # An evaluation

    @contextmanager
    def evaluation(self, split: str) -> Iterator[Averages]:
        """Let what is logged become part of the averages of an evaluation."""
        before = self._averages, self.evaluating
        averages = Averages()
        self._averages, self.evaluating = averages, split
        try:
            self._renewed(split)
            yield averages
        finally:
            self._averages, self.evaluating = before

    def evaluation_result(
        self, split: str, averages: Averages, batches: int
    ) -> dict[str, float] | None:
        """The means and metrics of an evaluation by name; None where no process had a batch.

        A collective. It must be called within `evaluation`.

        Args:
            split: The split that is evaluated.
            averages: The averages that `evaluation` gave.
            batches: The number of batches of this process.
        """
        parts = self._world.gather((averages.take(), batches))
        if not any(number for _, number in parts):
            return None
        totals = merged([taken for taken, _ in parts])
        result = {tag.removeprefix(f"{split}/"): total.value for tag, total in totals.items()}
        return result | compute(self.metrics_of(split), self._world)

    def means_of(self, split: str, averages: Averages) -> dict[str, float]:
        """The means of a split by name, over all processes; a collective."""
        return {tag.removeprefix(f"{split}/"): mean for tag, mean in self.means(averages).items()}

    # An end

    @contextmanager
    def ending(self) -> Iterator[Averages]:
        """Keep what is logged apart from the training: it is of a result that is there already."""
        before, averages = self._averages, Averages()
        self._averages = averages
        try:
            yield averages
        finally:
            self._averages = before

    def means(self, averages: Averages) -> dict[str, float]:
        """The means of what was logged by tag, over all processes; a collective."""
        totals = reduce_totals(averages.take(), self._world.gather)
        return {tag: total.value for tag, total in totals.items()}

    # State

    def state_dict(self) -> dict[str, Any]:
        """The open values of this process: averages, values not yet logged, metrics."""
        metrics = self.metrics_of("train")
        return {
            "meter": self.meter.state_dict(),
            "metrics": {
                name: metric_state(metric)
                for name, metric in metrics.items()
                if is_stateful(metric) and is_used(metric)
            },
        }

    def load_state_dict(self, *states: Mapping[str, Any]) -> None:
        """Go on from what was open, in one process or in several."""
        self.meter.load_state_dict(*(state["meter"] for state in states))
        for name, metric in self.metrics_of("train").items():
            used = [state["metrics"][name] for state in states if name in state["metrics"]]
            if used:
                load_metric_state(metric, *used)


def check_moment(on: str) -> None:
    """Refuse a word for when a value is logged that is none.

    Raises:
        MetricError: It is neither "step" nor "epoch".
    """
    if on not in ("step", "epoch"):
        raise MetricError(f'log(on={on!r}): it is "step" or "epoch"')


def checked_scalar(name: str, value: Any) -> Any:
    """A logged value as it is kept: a scalar tensor without its graph, or a float.

    Raises:
        MetricError: The value is neither a scalar tensor nor a number.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().clone()  # a weight would go on changing
    if isinstance(value, Tensor):
        raise MetricError(f"log({name!r}): the tensor has shape {tuple(value.shape)}, log a scalar")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MetricError(f"log({name!r}): a {type(value).__name__} is no number") from None
