"""What a training logs: values by name, averaged on their device until a number is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from danling.distributed.world import World
from danling.errors import MetricError
from danling.metrics.averages import Averages, Meter, Total, reduce_totals
from danling.metrics.metric import (
    compute,
    is_stateful,
    load_metric_state,
    metric_state,
    own_copies,
    reset,
)

__all__ = ["Logbook", "checked_scalar"]


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
        self._world = world
        self._device = device

    def log(self, values: Mapping[str, Any]) -> None:
        """Average values until the log interval, or until the end of the evaluation that runs.

        Raises:
            MetricError: A value is no scalar.
        """
        split = self.evaluating or "train"
        averages = self.meter if self._averages is None else self._averages
        for key, value in values.items():
            averages.add(key if "/" in key else f"{split}/{key}", checked_scalar(key, value))

    def metrics_of(self, split: str) -> dict[str, Any]:
        """The metrics of a split: each has copies, and so has an evaluation of `train`."""
        key = split, self.evaluating is not None
        if key not in self._copies:
            self._copies[key] = own_copies(self.metrics, self._device)
            self._originals[key] = dict(self.metrics)
        return self._copies[key]

    def _renewed(self, split: str) -> dict[str, Any]:
        """The metrics of a split at a beginning: of those that are assigned by now, and empty."""
        key = split, self.evaluating is not None
        known = self._originals.get(key, {})
        same = known.keys() == self.metrics.keys() and all(
            known[name] is metric for name, metric in self.metrics.items()
        )
        if not same:
            self._copies.pop(key, None)
        metrics = self.metrics_of(split)
        reset(metrics)
        return metrics

    # The training

    def start_epoch(self) -> None:
        """Begin the means and the metrics of an epoch."""
        self.meter.start_epoch()
        self._renewed("train")

    def epoch_means(self) -> dict[str, float]:
        """The means of the open epoch by name, over all processes; a collective."""
        totals = reduce_totals(self.meter.epoch_totals(), self._world.gather)
        return {
            tag.removeprefix("train/"): total.mean
            for tag, total in totals.items()
            if tag.startswith("train/")
        }

    def epoch_metrics(self) -> dict[str, float]:
        """The values of the metrics of the open epoch, over all processes; a collective."""
        return compute(self.metrics_of("train"), self._world)

    def end_window(self) -> dict[str, Total]:
        """The totals since the last call by tag, over all processes; a collective."""
        return reduce_totals(self.meter.end_window(), self._world.gather)

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

    def evaluation_result(self, split: str, averages: Averages) -> dict[str, float]:
        """The means and metrics of an evaluation by name; empty where there was no batch.

        A collective. It must be called within `evaluation`.
        """
        totals = reduce_totals(averages.take(), self._world.gather)
        if not totals:
            return {}
        result = {tag.removeprefix(f"{split}/"): total.mean for tag, total in totals.items()}
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
        return {tag: total.mean for tag, total in totals.items()}

    # State

    def state_dict(self) -> dict[str, Any]:
        """What is open in this process: averages, values not yet logged, metrics."""
        metrics = self.metrics_of("train")
        return {
            "meter": self.meter.state_dict(),
            "metrics": {
                name: metric_state(metric)
                for name, metric in metrics.items()
                if is_stateful(metric)
            },
        }

    def load_state_dict(self, *states: Mapping[str, Any]) -> None:
        """Go on from what was open, in one process or in several."""
        self.meter.load_state_dict(*(state["meter"] for state in states))
        metrics = self.metrics_of("train")
        for name in states[0]["metrics"]:
            if name in metrics:
                load_metric_state(metrics[name], *(state["metrics"][name] for state in states))


def checked_scalar(name: str, value: Any) -> Any:
    """A logged value as it is kept: a scalar tensor without its graph, or a float.

    Raises:
        MetricError: It is neither.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().clone()  # a weight would go on changing
    if isinstance(value, Tensor):
        raise MetricError(f"log({name!r}): the tensor has shape {tuple(value.shape)}, log a scalar")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MetricError(f"log({name!r}): a {type(value).__name__} is no number") from None
