"""What a training logs: values by name, averaged on their device until somebody wants numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from danling.metrics.averages import Averages, Meter, reduce_totals
from danling.metrics.logbook import checked_scalar
from danling.metrics.metric import compute, is_stateful, load_metric_state, metric_state
from danling.runner.parts import PartsRunner

__all__ = ["LogbookRunner"]


class LogbookRunner(PartsRunner):
    """A runner with averages: of the open epoch, of the time since the last log, of a split."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_log_step = False
        self._meter = Meter()
        self._evaluation_averages: Averages | None = None
        self._trained: set[str] = set()  # splits whose batches were asked for

    def log(self, name: str | Mapping[str, Any], value: Any = None) -> None:
        """Average a value until the log interval; it stays on its device until then.

        Within an evaluation it becomes part of the split's result. A name without a split gets that
        of what runs.

        Args:
            name: The name, or several values by name.
            value: A scalar, of this process; the means are over all of them.

        Example:
            >>> runner.log("aux", aux_loss)             # doctest: +SKIP
            >>> runner.log({"optim/temperature": 0.5})  # doctest: +SKIP
        """
        values = name if isinstance(name, Mapping) else {name: value}
        split = self.evaluating or "train"
        averages = (
            self._evaluation_averages if self._evaluation_averages is not None else self._meter
        )
        for key, item in values.items():
            averages.add(key if "/" in key else f"{split}/{key}", checked_scalar(key, item))

    @contextmanager
    def logging_to(self, averages: Averages, split: str) -> Iterator[None]:
        """Let `log` feed the averages of an evaluation."""
        before = self._evaluation_averages, self.evaluating
        self._evaluation_averages, self.evaluating = averages, split
        try:
            yield
        finally:
            self._evaluation_averages, self.evaluating = before

    def _training_result(self) -> dict[str, float]:
        """The means of the open epoch, over all processes."""
        totals = reduce_totals(self._meter.epoch_totals(), self.world.gather)
        means = {
            tag.removeprefix("train/"): total.mean
            for tag, total in totals.items()
            if tag.startswith("train/")
        }
        values = compute(self.metrics_of("train"), self.world) if means else {}
        if values:  # they have no value until the epoch is over, and so were never logged
            self.callbacks("on_log", self, {f"train/{name}": values[name] for name in values})
        return means | values

    def _log_window(self) -> None:
        """Give the means since the last log to `on_log`."""
        if not (self.distributed or self.callbacks.hears("on_log")):
            return  # a callback may be on one process only: what others hear is not known here
        totals = reduce_totals(self._meter.end_window(), self.world.gather)
        if not totals:
            return
        metrics = {tag: total.mean for tag, total in totals.items()}
        bad = {tag: total.nonfinite for tag, total in totals.items() if total.nonfinite}
        if bad:
            metrics["train/nonfinite"] = float(sum(bad.values()))
            self.logger.warning(
                "values that are not finite by global step %d: %s", self.global_step, bad
            )
        self.callbacks("on_log", self, metrics | self.optimization.learning_rates())

    # State

    def loop_state(self) -> dict[str, Any]:
        """What is open in this process: averages, values not yet logged, metrics."""
        metrics = self.metrics_of("train")
        return {
            "meter": self._meter.state_dict(),
            "metrics": {
                name: metric_state(metric)
                for name, metric in metrics.items()
                if is_stateful(metric)
            },
        }

    def loader_states(self) -> dict[str, Any]:
        """Where the loaders are that the training has used."""
        return {
            split: self.loader(split).state_dict(self.epoch, self.batch_index)
            for split in sorted(self._trained)
        }

    def remember_loader(self, split: str) -> None:
        """Let checkpoints hold where this split's loader is."""
        self._trained.add(split)

    def load_loop_state(self, *states: Mapping[str, Any]) -> None:
        """Go on from what was open, in one process or in several."""
        self._meter.load_state_dict(*(state["meter"] for state in states))
        metrics = self.metrics_of("train")
        for name in states[0]["metrics"]:
            if name in metrics:
                load_metric_state(metrics[name], *(state["metrics"][name] for state in states))
