"""Stop a training that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from danling.callbacks.monitor import Monitor
from danling.errors import CallbackError, did_you_mean
from danling.metrics.history import is_better

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["EarlyStopping"]

_SHARDED = {"DEEPSPEED", "FSDP", "MEGATRON_LM"}
"""Kinds of distribution (names of Accelerate's) in which no process has all of the weights."""


class EarlyStopping(Monitor):
    """Stop the training when a monitored value has stopped improving.

    Saves the time after the best epoch, and ends a run that diverged. A check is a result that has
    the monitored value: one per evaluation, or one per epoch for a `train/...` value; with
    `check_on="log"` each logged value is a check, every `log_interval` steps. The counts
    are saved in checkpoints: a resumed run stops where the uninterrupted one does, and resuming a
    run that has stopped trains nothing. Why it stopped is in `runner.stop_reason`.

    Args:
        monitor: The value, as `"val/loss"`; None for the monitor of the runner.
        mode: Whether lower (`"min"`) or higher (`"max"`) is better; None for the mode of the
            runner.
        patience: The number of checks without improvement in a row that stop the training; with 1
            the first one does.
        min_delta: The difference to the best that a score must have to count as an improvement.
        min_delta_mode: Whether `min_delta` is a difference (`"abs"`) or a share of the best score
            (`"rel"`): 0.01 is then one per cent.
        baseline: The score that must be beaten, too, for the count of checks to begin again: a
            training that does not get better than this stops after `patience` checks.
        check_on: Whether a check is a `"result"`, or a `"log"` of the value as well.
        stopping_threshold: The score that is good enough: a better one stops the training.
        divergence_threshold: The score from which no training recovers: a worse one stops it.
        check_finite: Whether a score that is NaN or infinite stops the training. Else it is a check
            that did not improve.
        start_from_epoch: The number of epochs without a check, while the training warms up.
        restore_best_weights: Whether the model has the weights of the best check after the run.
            They are kept on the CPU, and in checkpoints, which grow by as much. Checkpoints hold
            the weights of the training.
        name: The name, to have several of different monitors in a runner.

    Raises:
        CallbackError: An argument cannot be meant, or `restore_best_weights` is asked of a model
            whose weights are spread over processes.
        MetricError: The results do not have the monitored value.

    Example:
        >>> stopping = EarlyStopping("val/accuracy", "max", patience=2, min_delta=0.001)
        >>> stopping.name, stopping.patience
        ('early_stopping', 2)

    The rules are those of Lightning's `EarlyStopping`; `baseline`, `start_from_epoch` and
    `restore_best_weights` are those of Keras', and `min_delta_mode` is the `threshold_mode` of
    torch's `ReduceLROnPlateau`.
    """

    name = "early_stopping"

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        *,
        min_delta_mode: Literal["abs", "rel"] = "abs",
        baseline: float | None = None,
        check_on: Literal["result", "log"] = "result",
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
        start_from_epoch: int = 0,
        restore_best_weights: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        for argument, value, least in (
            ("patience", patience, 1),
            ("start_from_epoch", start_from_epoch, 0),
        ):
            if type(value) is not int or value < least:
                raise CallbackError(
                    f"EarlyStopping({argument}={value!r}): must be an integer of at least {least}"
                )
        for argument, choice, choices in (
            ("min_delta_mode", min_delta_mode, ("abs", "rel")),
            ("check_on", check_on, ("result", "log")),
        ):
            if choice not in choices:
                near = did_you_mean(str(choice), choices)
                raise CallbackError(f"EarlyStopping({argument}={choice!r}): {near}")
        self.patience = patience
        self.min_delta_mode = min_delta_mode
        self.baseline = baseline
        self.check_on = check_on
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_finite = check_finite
        self.start_from_epoch = start_from_epoch
        self.restore_best_weights = restore_best_weights
        self.name = name or type(self).name
        self._record = _Record()
        self._weights: dict[str, Any] | None = None
        self._finished = False

    @property
    def best(self) -> float | None:
        """The best score so far; None before the first check."""
        return self._record.best

    @property
    def wait(self) -> int:
        """Checks since the best one."""
        return self._record.wait

    def verdict(self, mode: Literal["min", "max"], monitor: str = "the score") -> str | None:
        """Why the training should stop now; None when it should go on."""
        record, score = self._record, self._record.score
        if score is None:
            return None
        if self.check_finite and not math.isfinite(score):
            return f"{monitor} is {score} at global step {record.global_step}"
        if _beats(score, self.stopping_threshold, mode):
            return (
                f"{monitor} = {score:.6g} is better than the threshold {self.stopping_threshold:g}"
            )
        if _beats(self.divergence_threshold, score, mode):
            return (
                f"{monitor} = {score:.6g} is worse than the threshold {self.divergence_threshold:g}"
            )
        just_improved = record.best_step == record.global_step  # without beating the baseline
        if record.wait < self.patience or just_improved:
            return None
        checks = "1 check" if record.wait == 1 else f"{record.wait} checks"
        if record.best is None:
            return f"{monitor} was never finite in {checks}"
        better = "improve" if self.baseline is None else f"get better than {self.baseline:g}"
        if _beats(record.best, self.baseline, mode):
            better = "improve"
        return (
            f"{monitor} did not {better} in {checks}, "
            f"the best is {record.best:.6g} at global step {record.best_step}"
        )

    def is_better(
        self, score: float | None, best: float | None, mode: Literal["min", "max"]
    ) -> bool:
        """Whether a score beats the best by more than `min_delta`; NaN and infinities never do."""
        if self.min_delta_mode == "abs" or best is None:
            return super().is_better(score, best, mode)
        delta = self.min_delta * abs(best)
        return is_better(score, best + delta if mode == "max" else best - delta, mode)

    def check(self, score: float, global_step: int, mode: Literal["min", "max"]) -> bool:
        """Count one score; returns whether it is the best so far."""
        record = self._record
        record.score, record.global_step = score, global_step
        improved = self.is_better(score, record.best, mode)
        record.wait += 1
        if improved:
            record.best, record.best_step = score, global_step
            if self.baseline is None or super().is_better(score, self.baseline, mode):
                record.wait = 0
        return improved

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        self._finished = False
        if runner.global_step == 0:
            self._record, self._weights = _Record(), None
        kind = runner.distributed_type
        if self.restore_best_weights and kind in _SHARDED:
            raise CallbackError(
                f"EarlyStopping(restore_best_weights=True): with {kind} no process has all of the "
                "weights; load best.pth after the training instead"
            )

    def on_train_start(self, runner: Runner) -> None:
        """Refuse a split that does not exist, and a resumed training that has stopped before."""
        monitor, mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        splits = {"train", *runner.splits}
        split = monitor.partition("/")[0]
        if split not in splits:
            near = did_you_mean(split, splits)
            raise CallbackError(f"EarlyStopping(monitor={monitor!r}): no split {split!r}, {near}")
        self._stop(runner, self.verdict(mode, monitor))

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Check a logged value, where these are checked."""
        monitor, mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        step, is_checked = runner.global_step, runner.epoch >= self.start_from_epoch
        is_checked = is_checked and step > self._record.global_step
        if self.check_on == "log" and monitor in metrics and is_checked:
            self._check(runner, metrics[monitor], step, monitor, mode)

    def on_checkpoint(self, runner: Runner) -> None:
        """Check a new result; before the checkpoint of this moment, which holds the counts."""
        result = runner.latest_result
        if result is None or result["global_step"] <= self._record.global_step:
            return
        monitor, mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        if self.check_on == "log":
            self.score(monitor, result)  # an error where there is no such value
            return
        if monitor.startswith("train/") and not runner.epoch_complete:
            return
        score = self.score(monitor, result)
        started = result["epoch"] - ("train" in result)  # epochs complete when the epoch began
        if score is None or started < self.start_from_epoch:
            return
        self._check(runner, score, result["global_step"], monitor, mode)

    def on_train_end(self, runner: Runner) -> None:
        """Remember that the training ended without an exception."""
        self._finished = True

    def on_teardown(self, runner: Runner) -> None:
        """Put back the best weights, after the last checkpoint was written."""
        if self._finished and self._weights is not None:
            runner.unwrapped_model.load_state_dict(self._weights)
            runner.logger.info(
                "%s: the model has the weights of global step %d again",
                self.name,
                self._record.best_step,
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the best weights when they are restored in the end."""
        state = dict(vars(self._record))
        return state | {"weights": self._weights} if self.restore_best_weights else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the counts; patience and thresholds are those of now."""
        counts = dict(state)
        self._weights = counts.pop("weights", None)
        self._record = _Record(**counts)

    def _check(
        self, runner: Runner, score: float, step: int, monitor: str, mode: Literal["min", "max"]
    ) -> None:
        if self.check(score, step, mode) and self.restore_best_weights:
            self._weights = _copy_to_cpu(runner.unwrapped_model.state_dict())
        self._stop(runner, self.verdict(mode, monitor))

    def _stop(self, runner: Runner, reason: str | None) -> None:
        if reason is not None:
            runner.stop(f"{self.name}: {reason}")


@dataclass
class _Record:
    """What the checks have seen."""

    best: float | None = None
    best_step: int = -1
    wait: int = 0
    score: float | None = None
    global_step: int = -1


def _beats(score: float | None, other: float | None, mode: Literal["min", "max"]) -> bool:
    if score is None or other is None:
        return False
    return score < other if mode == "min" else score > other


def _copy_to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {
        key: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }
