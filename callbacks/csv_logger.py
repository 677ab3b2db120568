"""The metrics as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.run.metrics_file import MetricsTable
from danling.run.metrics_log import MetricsLog

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["CSVLogger"]


class CSVLogger(Callback):
    """Write the metrics to `metrics.csv` in the run's directory, for spreadsheets and pandas.

    The table has a row per log and a column per tag. What was not logged is empty, NaN is `nan`. A
    tag that appears later becomes a column at the end, and earlier rows are filled up: all rows
    have the same length. A resumed run cuts the table back to its checkpoint. On a full disk the
    training goes on, with a warning.

    Example:
        >>> CSVLogger().name
        'csv_logger'
    """

    name = "csv_logger"
    priority = Priority.HIGH
    only_watches = True

    def __init__(self) -> None:
        self._log = MetricsLog("writing metrics.csv")

    def on_setup(self, runner: Runner) -> None:
        """Start anew: the file is opened when it is known where the run goes on."""
        self._log.reset()

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Cut the table back to the checkpoint."""
        if runner.in_run:
            self._open(runner)

    def on_train_start(self, runner: Runner) -> None:
        """Open the table of a run that was not resumed."""
        if not self._log.is_open:
            self._open(runner)

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Add a row."""
        self._log.add(runner.global_step, runner.epoch, metrics, runner.logger)

    def on_epoch_end(self, runner: Runner) -> None:
        """Write the rows to the disk."""
        self._log.flush(runner.logger)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write the last rows before an error to the disk."""
        self._log.flush(runner.logger)

    def on_teardown(self, runner: Runner) -> None:
        """Write the rows that are not on the disk yet."""
        self._log.close(runner.logger)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows, all of which are on the disk now."""
        return self._log.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the number of rows."""
        self._log.load_state_dict(state)

    def _open(self, runner: Runner) -> None:
        if runner.is_main_process and runner.has_dir:
            table = MetricsTable(runner.dir / "metrics.csv")
            self._log.open(table, runner.global_step, runner.logger)
