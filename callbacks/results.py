"""The results of a run as files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.files.atomic import write_json, write_text
from danling.files.json import dumps
from danling.logs import Attempts
from danling.run.metrics_file import MetricsFile

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Results"]

_FLUSH_SECONDS = 10.0
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

    def __init__(self) -> None:
        self._metrics: MetricsFile | None = None
        self._rows: int | None = None
        self._lines: list[str] = []
        self._best: dict[str, Any] | None = None
        self._outdated = False
        self._flushed = self._rewritten = 0.0
        self._attempts = Attempts("writing the results")

    def on_setup(self, runner: Runner) -> None:
        """Start anew: the files are opened when it is known where the run goes on."""
        self._metrics, self._rows, self._outdated = None, None, False

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Cut the files back to the checkpoint."""
        if runner.in_run:
            self._open(runner)
            self._rewrite(runner)

    def on_train_start(self, runner: Runner) -> None:
        """Open the files of a run that was not resumed."""
        if self._metrics is None:
            self._open(runner)

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Add a row."""
        if self._metrics is None:
            return
        now = round(time.time(), 3)
        row = {"global_step": runner.global_step, "epoch": runner.epoch, "time": now}
        self._metrics.append(row | dict(metrics))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush(runner)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Note that there will be a new result."""
        self._outdated = self._metrics is not None

    def on_epoch_end(self, runner: Runner) -> None:
        """Note that there is a new result."""
        self._outdated = self._metrics is not None

    def on_checkpoint(self, runner: Runner) -> None:
        """Write a new result, unless there was one just now."""
        if self._outdated and time.monotonic() - self._rewritten >= _REWRITE_SECONDS:
            self._flush(runner)
            self._rewrite(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Make the last rows before an error durable."""
        self._flush(runner)

    def on_teardown(self, runner: Runner) -> None:
        """Write everything that is not written yet."""
        if self._metrics is None:
            return
        with self._attempts.caught(runner.logger):
            self._metrics.close()
        if self._outdated:
            self._rewrite(runner)
        self._metrics = None
        self._attempts.report(runner.logger)

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are, all of which are on the disk now."""
        if self._metrics is None:
            return {}
        with contextlib.suppress(OSError):  # the next flush says so
            self._metrics.flush()
        return {"rows": self._metrics.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back how many rows there were."""
        self._rows = state.get("rows")

    def _open(self, runner: Runner) -> None:
        if not (runner.is_main_process and runner.has_dir):
            return
        with self._attempts.caught(runner.logger):
            if self._metrics is not None:
                self._metrics.close()
            metrics = MetricsFile(runner.paths.metrics)
            runner.paths.metadata.mkdir(exist_ok=True)
            metrics.cut(runner.global_step, self._rows, runner.paths.abandoned)
            self._metrics = metrics
        self._rows, self._lines, self._best = None, [], None
        self._flushed = time.monotonic()

    def _flush(self, runner: Runner) -> None:
        if self._metrics is not None:
            with self._attempts.caught(runner.logger):
                self._metrics.flush()
            self._flushed = time.monotonic()

    def _rewrite(self, runner: Runner) -> None:
        if self._metrics is None:
            return
        results, best = runner.results, runner.best_result
        # all but the last are as they were: their lines are kept
        self._lines[-1:] = [dumps(result) for result in results[max(len(self._lines) - 1, 0) :]]
        with self._attempts.caught(runner.logger):
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
