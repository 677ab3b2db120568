"""Trials of Optuna that are not worth their time end early."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from danling.callbacks.monitor import Monitor
from danling.errors import CallbackError
from danling.run.trial import PRUNED, SweepTrial

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["OptunaPruning"]


class OptunaPruning(Monitor):
    """Report each evaluation to a trial of Optuna, and end the trial where its pruner says so.

    A trial that is pruned leaves the training with `optuna.TrialPruned`, as Optuna expects it: do
    not catch it. The step of a report is the epoch. Of several processes the main one reports, and
    all end. It costs a report per evaluation, and has no state: Optuna keeps the reports.

    Without a trial it is that of `danling sweep --optimize`, which starts a process for each: a
    trial that is pruned then stops its run. In a process that no sweep has started nothing happens.

    Args:
        trial: The trial; None for that of the sweep.
        monitor: The value that is reported, as `"val/accuracy"`; None: what the sweep optimises,
            else the monitor of the run.

    Raises:
        CallbackError: Optuna is not installed, or this is no trial.

    Example:
        >>> OptunaPruning().trial is None  # no sweep has started this process
        True
        >>> def objective(trial):  # doctest: +SKIP
        ...     runner = make_runner(trial, callbacks=[OptunaPruning(trial)])
        ...     runner.train()
        ...     return runner.best_score
    """

    name = "optuna_pruning"

    def __init__(self, trial: Any = None, monitor: str | None = None) -> None:
        told = SweepTrial.read() if trial is None else None
        super().__init__(monitor or (told.monitor if told else None))
        self._stops = told is not None
        self._reported = -1
        self.trial = trial
        if trial is None and told is None:
            return
        try:
            self._optuna: Any = import_module("optuna")
        except ImportError as error:
            raise CallbackError("OptunaPruning needs Optuna: pip install optuna") from error
        if told is not None:
            self.trial = _opened(self._optuna, told)
        elif not hasattr(trial, "should_prune"):
            raise CallbackError(
                f"OptunaPruning({trial!r}): give it the trial that the objective is called with"
            )

    def on_epoch_end(self, runner: Runner) -> None:
        """Report the score of the epoch."""
        result = runner.latest_result
        if self.trial is None or result is None:
            return
        if not runner.epoch_complete or runner.epoch <= self._reported:
            return
        score = self.score(self.monitor or runner.monitor, result)
        if score is None:
            return
        self._reported = runner.epoch
        if runner.world.on_main(lambda: self._is_hopeless(score, runner.epoch)):
            text = f"{PRUNED} at epoch {runner.epoch}, score {score:.6g}"
            runner.logger.info("%s: %s", self.name, text)
            if not self._stops:
                raise self._optuna.TrialPruned(f"{self.name}: {text}")
            runner.stop(text)

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Report no epoch twice."""
        self._reported = runner.epoch

    def _is_hopeless(self, score: float, epoch: int) -> bool:
        self.trial.report(score, epoch)
        return bool(self.trial.should_prune())


def _opened(optuna: Any, told: SweepTrial) -> Any:
    """The trial of a sweep, which another process has made."""
    pruner = getattr(optuna.pruners, told.pruner)()
    study = optuna.load_study(study_name=told.study, storage=told.storage, pruner=pruner)
    (found,) = [t for t in study.get_trials(deepcopy=False) if t.number == told.number]
    return optuna.trial.Trial(study, found._trial_id)
