"""Trials of Optuna that are not worth their time end early."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from danling.callbacks.monitor import Monitor
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["OptunaPruning"]


class OptunaPruning(Monitor):
    """Report each evaluation to a trial of Optuna, and end the trial where its pruner says so.

    A trial that is pruned leaves the training with `optuna.TrialPruned`, as Optuna expects it: do
    not catch it. The step of a report is the epoch. Of several processes the main one reports, and
    all end. It costs a report per evaluation, and has no state: Optuna keeps the reports.

    Args:
        trial: The trial.
        monitor: What is reported, as `"val/accuracy"`; by default the monitor of the run.

    Raises:
        CallbackError: Optuna is not installed, or this is no trial.

    Example:
        >>> def objective(trial):  # doctest: +SKIP
        ...     runner = make_runner(trial, callbacks=[OptunaPruning(trial)])
        ...     runner.train()
        ...     return runner.best_score
    """

    name = "optuna_pruning"

    def __init__(self, trial: Any, monitor: str | None = None) -> None:
        super().__init__(monitor)
        try:
            self._optuna: Any = import_module("optuna")
        except ImportError as error:
            raise CallbackError("OptunaPruning needs Optuna: pip install optuna") from error
        if not hasattr(trial, "should_prune"):
            raise CallbackError(
                f"OptunaPruning({trial!r}): give it the trial that the objective is called with"
            )
        self.trial = trial
        self._reported = -1

    def on_epoch_end(self, runner: Runner) -> None:
        """Report the score of the epoch."""
        result = runner.latest_result
        if result is None or not runner.epoch_complete or runner.epoch <= self._reported:
            return
        score = self.score(self.monitor or runner.monitor, result)
        if score is None:
            return
        self._reported = runner.epoch
        if runner.world.on_main(lambda: self._is_hopeless(score, runner.epoch)):
            text = f"{self.name}: the trial is pruned at epoch {runner.epoch}, score {score:.6g}"
            runner.logger.info("%s", text)
            raise self._optuna.TrialPruned(text)

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Report no epoch twice."""
        self._reported = runner.epoch

    def _is_hopeless(self, score: float, epoch: int) -> bool:
        self.trial.report(score, epoch)
        return bool(self.trial.should_prune())
