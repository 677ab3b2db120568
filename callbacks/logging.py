"""What happens in a run, in words: on the console and in `run.log`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.logs import close_logger

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["Logging"]


class Logging(Callback):
    """Write what happens to the console and to `run.log`, each line once, on the main process.

    The console (stderr) gets a line per epoch, per evaluation within one, and what is out of the
    ordinary. `run.log` gets the same, the metrics of every log interval and the traceback of an
    error. A resumed run appends to it. Use `runner.logger` for lines of your own. The root logger
    is left alone; the run's logger does not propagate to it.

    Example:
        >>> Logging().name
        'logging'
    """

    name = "logging"
    priority = Priority.HIGHEST + 1

    def __init__(self) -> None:
        self._started = self._epoch_started = time.monotonic()
        self._evaluated: dict[str, Any] = {}
        self._error = ""

    def on_setup(self, runner: Runner) -> None:
        """Open the handlers of `runner.logger`."""
        self._started = time.monotonic()
        self._evaluated, self._error = {}, ""
        runner.init_logging()

    def on_train_start(self, runner: Runner) -> None:
        """Say what runs, where and on what."""
        self._epoch_started = time.monotonic()
        processes = "1 process" if runner.world_size == 1 else f"{runner.world_size} processes"
        precision = runner.accelerator.mixed_precision
        runner.logger.info(
            "%s on %s, %s, precision %s, seed %s",
            runner.name,
            runner.device,
            processes,
            "fp32" if precision == "no" else precision,
            runner.config.seed,
        )
        if runner.has_dir:
            runner.logger.info("directory %s", runner.dir)

    def on_epoch_start(self, runner: Runner) -> None:
        """Start the epoch's clock."""
        self._epoch_started = time.monotonic()

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Write the metrics to `run.log`; on the console they are in the bar."""
        values = " ".join(f"{tag} {_number(value)}" for tag, value in metrics.items())
        runner.logger.debug("step %d | %s", runner.global_step, values)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Keep the result for the line that it belongs to."""
        self._evaluated[split] = result

    def on_checkpoint(self, runner: Runner) -> None:
        """Write the evaluations within an epoch; the others are in the line of the epoch."""
        if self._evaluated:
            self._write_line(runner, self._evaluated)

    def on_epoch_end(self, runner: Runner) -> None:
        """Write the epoch's line."""
        seconds = time.monotonic() - self._epoch_started
        notes = (
            [f"{seconds:.1f} s"] if runner.epoch_complete else [f"{seconds:.1f} s", "incomplete"]
        )
        self._write_line(runner, runner.latest_result or {}, *notes)

    def on_train_end(self, runner: Runner) -> None:
        """Say why the training was stopped."""
        if self._evaluated:
            self._write_line(runner, self._evaluated)
        if runner.stop_reason is not None:
            runner.logger.info("stopped: %s", runner.stop_reason)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write the traceback to `run.log`; Python writes it to the console."""
        lines = str(error).splitlines() or [""]
        self._error = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
        runner.logger.debug("the run ends with an exception", exc_info=error)

    def on_teardown(self, runner: Runner) -> None:
        """Write how the run ended, and close the handlers."""
        seconds = time.monotonic() - self._started
        level = logging.ERROR if runner.status == "failed" else logging.INFO
        where = f"epoch {runner.epoch}, step {runner.global_step}"
        best = "" if runner.best_result is None else _best(runner)
        end = f"{runner.status} after {seconds:.1f} s at {where}{best}"
        runner.logger.log(level, "%s", f"{end}: {self._error}" if self._error else end)
        close_logger(runner.logger)

    def _write_line(self, runner: Runner, result: Mapping[str, Any], *notes: str) -> None:
        current = runner.epoch + (not runner.epoch_complete)  # the one that is open, or was cut
        parts = [_count("epoch", current, runner.config.max_epochs)]
        parts.append(_count("step", runner.global_step, runner.total_steps))
        for split, values in result.items():
            if isinstance(values, Mapping):
                numbers = " ".join(f"{name} {_number(value)}" for name, value in values.items())
                parts.append(f"{split} {numbers}")
        parts.extend(notes)
        if self._evaluated and runner.is_best:
            parts.append("best")
        self._evaluated = {}
        runner.logger.info(" | ".join(parts))


def _best(runner: Runner) -> str:
    result, score = runner.best_result or {}, runner.best_score
    where = f"epoch {result['epoch']}, step {result['global_step']}"
    return "" if score is None else f", best {runner.monitor} {_number(score).strip()} ({where})"


def _count(noun: str, done: int, total: int | None) -> str:
    return f"{noun} {done}" if total is None else f"{noun} {done:>{len(str(total))}}/{total}"


def _number(value: float) -> str:
    """Of one width, so that the lines of epochs are a table."""
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:<8.4f}"
    return f"{value:<8.5g}" if 10 <= abs(value) < 1e5 else f"{value:<8.2e}"
