"""Trials of Ray Tune hear the results of a run."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean
from danling.metrics.history import flatten

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["RayTuneReport"]


class RayTuneReport(Callback):
    """Report the result of each epoch to the trial of Ray Tune in which the run is.

    The values have their full tags, as `val/loss`, and `epoch` and `global_step` are among them.
    Tune may end the trial at a report; the run is then killed with its worker. Outside of a trial
    nothing is reported, with a line in the log. Of several processes the main one reports.

    It costs a report per epoch, and a comparison per step. There is no state: Ray keeps the
    reports, and a resumed run reports no epoch twice.

    Args:
        metrics: The tags that are reported, or a mapping of names at Ray to tags; None: all.
        checkpoint: Whether a report comes with a copy of `latest.pth`, which a scheduler as
            `PopulationBasedTraining` gives to other trials; `checkpoint_of` is where they find it.

    Raises:
        CallbackError: Ray Tune is not installed, or a tag is in no result.

    Example:
        >>> def trainable(settings):  # doctest: +SKIP
        ...     runner = make_runner(settings, callbacks=[RayTuneReport({"loss": "val/loss"})])
        ...     runner.train()
    """

    name = "ray_tune_report"
    priority = Priority.LOWEST + 1  # after the checkpoint

    def __init__(
        self,
        metrics: Sequence[str] | Mapping[str, str] | None = None,
        *,
        checkpoint: bool = False,
    ) -> None:
        try:
            self._tune: Any = import_module("ray.tune")
        except ImportError as error:
            raise CallbackError("RayTuneReport needs Ray Tune: pip install 'ray[tune]'") from error
        if isinstance(metrics, str):
            metrics = [metrics]
        if metrics is not None and not isinstance(metrics, Mapping):
            metrics = {tag: tag for tag in metrics}
        self.metrics = metrics
        self.checkpoint = checkpoint
        self._is_reporting = False
        self._reported = 0

    def on_setup(self, runner: Runner) -> None:
        """Look whether this is a trial."""
        self._is_reporting = runner.is_main_process and self._trial() is not None
        self._reported = runner.epoch
        if runner.is_main_process and not self._is_reporting:
            runner.logger.info("%s: this is no trial of Ray Tune, nothing is reported", self.name)

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Report no epoch twice."""
        self._reported = runner.epoch

    def on_checkpoint(self, runner: Runner) -> None:
        """Report the result of the epoch that has ended."""
        if not self._is_reporting or runner.epoch == self._reported:
            return
        self._reported = runner.epoch
        values = self._values(runner.latest_result or {})
        latest = runner.checkpoint_dir / "latest.pth" if runner.has_dir else None
        if not self.checkpoint or latest is None or not latest.exists():
            self._tune.report(values)
            return
        with TemporaryDirectory() as folder:
            shutil.copyfile(latest, Path(folder) / latest.name)
            self._tune.report(values, checkpoint=self._tune.Checkpoint.from_directory(folder))

    @staticmethod
    def checkpoint_of(folder: str | Path) -> str | None:
        """The file that the scheduler gave this trial to go on from; None where it gave none.

        Args:
            folder: The folder that the file is copied into.

        Raises:
            CallbackError: Ray Tune is not installed.
        """
        try:
            tune: Any = import_module("ray.tune")
        except ImportError as error:
            raise CallbackError("RayTuneReport needs Ray Tune: pip install 'ray[tune]'") from error
        given = tune.get_checkpoint()
        return None if given is None else str(Path(given.to_directory(str(folder))) / "latest.pth")

    def _trial(self) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where this is no trial
            trial: str | None = self._tune.get_context().get_trial_id()
        return trial

    def _values(self, result: Mapping[str, Any]) -> dict[str, float]:
        known = flatten(result)
        counts = {"epoch": result["epoch"], "global_step": result["global_step"]}
        if self.metrics is None:
            return known | counts
        for tag in self.metrics.values():
            if tag not in known:
                raise CallbackError(
                    f"RayTuneReport({tag!r}): {did_you_mean(tag, known)} "
                    f"(the result has {', '.join(known)})"
                )
        return {name: known[tag] for name, tag in self.metrics.items()} | counts
