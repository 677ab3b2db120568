"""The results of a run as files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.files.atomic import write_json, write_text
from danling.files.json import dumps
from danling.run.metrics_file import MetricsFile
from danling.run.metrics_log import MetricsLog

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["Results"]

_REWRITE_SECONDS = 1.0


class Results(Callback):
    """Write what was measured: `metrics.jsonl`, `results.json`, `latest.json` and `best.json`.

    `metrics.jsonl` gets a row per log, `{"global_step", "epoch", "time", "train/loss", ...}`, and
    is the record that other views are made of. Rows reach the disk every 10 seconds, and at
    evaluations, epoch ends, checkpoints and errors. The JSON files are replaced after an epoch or
    an evaluation, at most once per second, and always at the end. All are valid JSON: NaN and
    infinities are strings. A resumed run cuts them back to its checkpoint; the rows after it go to
    `metadata/abandoned.jsonl`. On a full disk the training goes on, with a warning.

    Example:
        >>> Results().name
        'results'
    """

    name = "results"
    priority = Priority.HIGH
    only_watches = True

    def __init__(self) -> None:
        self._log = MetricsLog("writing the results")
        self._lines: list[str] = []
        self._best: dict[str, Any] | None = None
        self._outdated = False
        self._rewritten = 0.0

    def on_setup(self, runner: Runner) -> None:
        """Start anew: the files are opened when it is known where the run goes on."""
        self._log.reset()
        self._outdated = False

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Cut the files back to the checkpoint."""
        if runner.in_run:
            self._open(runner)
            self._rewrite(runner)

    def on_train_start(self, runner: Runner) -> None:
        """Open the files of a run that was not resumed."""
        if not self._log.is_open:
            self._open(runner)

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Add a row."""
        self._log.add(runner.global_step, runner.epoch, metrics, runner.logger)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Note that there will be a new result."""
        self._outdated = self._log.is_open

    def on_epoch_end(self, runner: Runner) -> None:
        """Note that there is a new result."""
        self._outdated = self._log.is_open

    def on_checkpoint(self, runner: Runner) -> None:
        """Write a new result, unless the last one was written less than a second ago."""
        if self._outdated and time.monotonic() - self._rewritten >= _REWRITE_SECONDS:
            self._log.flush(runner.logger)
            self._rewrite(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write the last rows before an error to the disk."""
        self._log.flush(runner.logger)

    def on_teardown(self, runner: Runner) -> None:
        """Write everything that is not on the disk yet."""
        if self._outdated:
            self._rewrite(runner)
        self._log.close(runner.logger)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows of metrics.jsonl, all of which are on the disk now."""
        return self._log.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the number of rows."""
        self._log.load_state_dict(state)

    def _open(self, runner: Runner) -> None:
        if not (runner.is_main_process and runner.has_dir):
            return
        file, aside = MetricsFile(runner.paths.metrics), runner.paths.abandoned
        self._log.open(file, runner.global_step, runner.logger, aside)
        self._lines, self._best = [], None

    def _rewrite(self, runner: Runner) -> None:
        if not self._log.is_open:
            return
        results, best = runner.results, runner.best_result
        # all results but the last are as they were: their lines are kept
        self._lines[-1:] = [dumps(result) for result in results[max(len(self._lines) - 1, 0) :]]
        with self._log.attempts.caught(runner.logger):
            write_text(runner.paths.results, "[\n" + ",\n".join(self._lines) + "\n]\n")
            if results:
                write_json(runner.paths.latest, results[-1])
            if best != self._best and best is not None:
                write_json(runner.paths.best, best)
            if best is None:
                runner.paths.best.unlink(missing_ok=True)
        self._best = None if best is None else dict(best)
        self._outdated = False
        self._rewritten = time.monotonic()
