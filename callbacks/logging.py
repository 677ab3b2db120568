"""Lines about a run, on the console and in `run.log`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling.callback import Callback, Priority
from danling.identity.redaction import mask, mask_argv
from danling.logs import close_logger, number

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["Logging"]

_WIDTH: Final = 70  # what is left of 80 columns after the time of day
_COLUMN: Final = 7


class Logging(Callback):
    """Write lines about the run to the console and to `run.log`, on the main process.

    The console (stderr, in a notebook stdout) gets the device, processes, precision, batch size and
    seed at the start, a row of a table per epoch and per evaluation within one, and at the end the
    best values, the directory and the next command. `run.log` gets the same lines, and besides them
    the metrics of every log interval and the traceback of an error. The table fits 80 columns:
    metrics that have no room are named once, and are in `results.json` as all are. A resumed run
    appends to `run.log`. Use `runner.logger` for lines of your own. The root logger is not changed;
    the run's logger does not propagate to it.

    Example:
        >>> Logging().name
        'logging'
    """

    name = "logging"
    priority = Priority.HIGHEST + 1
    only_watches = True

    def __init__(self) -> None:
        self._started = self._epoch_started = time.monotonic()
        self._evaluated: dict[str, Any] = {}
        self._error = ""
        self._table = _Table(0, "")

    def on_setup(self, runner: Runner) -> None:
        """Open the handlers of `runner.logger`."""
        self._started = time.monotonic()
        self._evaluated, self._error = {}, ""
        runner.init_logging()

    def on_train_start(self, runner: Runner) -> None:
        """Write what the training runs on, and where."""
        self._epoch_started = time.monotonic()
        self._table = _Table(len(str(runner.total_steps or 100_000)), runner.monitor)
        runner.logger.info("%s; %s", _surroundings(runner), _saved(runner))
        if runner.has_dir:
            runner.logger.info("directory %s", _relative(runner.dir))

    def on_epoch_start(self, runner: Runner) -> None:
        """Start the epoch's clock."""
        self._epoch_started = time.monotonic()

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Write the metrics to `run.log`; on the console they are in the bar."""
        values = " ".join(f"{tag} {number(value)}" for tag, value in metrics.items())
        runner.logger.debug("step %d | %s", runner.global_step, values)

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Keep the result for its row of the table."""
        self._evaluated[split] = result

    def on_checkpoint(self, runner: Runner) -> None:
        """Write the row of an evaluation within an epoch; others are in the row of the epoch."""
        if self._evaluated:
            self._write_row(runner, self._evaluated)

    def on_epoch_end(self, runner: Runner) -> None:
        """Write the epoch's row."""
        seconds = time.monotonic() - self._epoch_started
        mark = "" if runner.epoch_complete else "incomplete"
        self._write_row(runner, runner.latest_result or {}, _duration(seconds), mark)

    def on_train_end(self, runner: Runner) -> None:
        """Write why the training was stopped."""
        if self._evaluated:
            self._write_row(runner, self._evaluated)
        if runner.stop_reason is not None:
            runner.logger.info("stopped: %s", runner.stop_reason)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Write the traceback to `run.log`; Python writes it to the console."""
        lines = str(error).splitlines() or [""]
        self._error = mask(f"{type(error).__name__}: {lines[0]}".rstrip(": "))
        text = mask("".join(traceback.format_exception(error))).rstrip()
        runner.logger.debug("the run ends with an exception\n%s", text)

    def on_teardown(self, runner: Runner) -> None:
        """Write how the run ended and what to do next, and close the handlers."""
        seconds = time.monotonic() - self._started
        level = logging.ERROR if runner.status == "failed" else logging.INFO
        end = f"{runner.status} after {_duration(seconds)}"
        end += f": epoch {runner.epoch}, step {runner.global_step}"
        runner.logger.log(level, "%s", f"{end}: {self._error}" if self._error else end)
        if runner.best_result is not None:
            runner.logger.info("%s", _best(runner))
        if runner.has_dir:
            runner.logger.info("directory %s", _relative(runner.dir))
            runner.logger.info("next: %s", _next(runner))
        close_logger(runner.logger)

    def _write_row(
        self, runner: Runner, result: Mapping[str, Any], seconds: str = "", mark: str = ""
    ) -> None:
        if self._evaluated and runner.is_best:
            mark = "best"
        self._evaluated = {}
        current = runner.epoch + (not runner.epoch_complete)  # the one that is open, or was cut
        total = runner.config.max_epochs
        epoch = str(current) if total is None else f"{current}/{total}"
        splits = {name: values for name, values in result.items() if isinstance(values, Mapping)}
        for line in self._table.lines(epoch, runner.global_step, splits, f"{seconds:>6} {mark}"):
            runner.logger.info("%s", line)


class _Table:
    """The rows of a training, under a header that is written when there are new columns.

    Args:
        step_width: The width of the column of steps.
        monitor: The tag that keeps its column where there is no room for all.
    """

    def __init__(self, step_width: int, monitor: str) -> None:
        self._step_width = max(step_width, len("step"))
        self._monitor = monitor
        self._epoch_width = len("epoch")
        self._known: dict[str, list[str]] = {}
        self._shown: dict[str, list[str]] = {}

    def lines(
        self, epoch: str, step: int, splits: Mapping[str, Mapping[str, float]], notes: str
    ) -> list[str]:
        """The row of a result, after a header where there are columns that the last one lacks."""
        lines = []
        if self._learn(splits):
            self._epoch_width = max(self._epoch_width, len(epoch))
            left_out = self._choose()
            lines.append(self._line("epoch", "step", self._titles(), f"{'time':>6}"))
            if left_out:
                lines.append(f"no room for {', '.join(left_out)}: see results.json")
        cells = {split: self._cells(split, splits.get(split, {})) for split in self._shown}
        return [*lines, self._line(epoch, str(step), cells, notes)]

    def _learn(self, splits: Mapping[str, Mapping[str, float]]) -> bool:
        before = {split: list(names) for split, names in self._known.items()}
        for split, values in splits.items():
            names = self._known.setdefault(split, [])
            names += [name for name in values if name not in names]
        if "train" in self._known:
            self._known = {"train": self._known.pop("train"), **self._known}
        return self._known != before

    def _choose(self) -> list[str]:
        """Leave out columns until the row fits: the last ones first, loss and monitor never."""
        self._shown = {split: list(names) for split, names in self._known.items()}
        left_out: list[str] = []
        while len(self._line("epoch", "step", self._titles(), f"{'time':>6} best")) > _WIDTH:
            tags = [f"{split}/{name}" for split, names in self._shown.items() for name in names]
            spare = [tag for tag in tags if tag != self._monitor and not tag.endswith("/loss")]
            if not spare:
                break
            split, _, name = spare[-1].partition("/")
            self._shown[split].remove(name)
            left_out.insert(0, spare[-1])
        self._shown = {split: names for split, names in self._shown.items() if names}
        return left_out

    def _titles(self) -> dict[str, list[str]]:
        return {
            split: [
                f"{split} {name}".rjust(_COLUMN) if index == 0 else name.rjust(_COLUMN)
                for index, name in enumerate(names)
            ]
            for split, names in self._shown.items()
        }

    def _cells(self, split: str, values: Mapping[str, float]) -> list[str]:
        shown = [number(values[name]) if name in values else "" for name in self._shown[split]]
        widths = map(len, self._titles()[split])
        return [text.rjust(width) for text, width in zip(shown, widths, strict=True)]

    def _line(self, epoch: str, step: str, cells: Mapping[str, list[str]], notes: str) -> str:
        head = f"{epoch:>{self._epoch_width}} {step:>{self._step_width}}"
        return " | ".join([head, *map(" ".join, cells.values()), notes]).rstrip()


def _surroundings(runner: Runner) -> str:
    processes = "1 process" if runner.world_size == 1 else f"{runner.world_size} processes"
    precision = runner.precision
    parts = [str(runner.device), processes, "fp32" if precision == "no" else precision]
    if runner.batch_size is not None:
        parts.append(f"batch size {runner.batch_size}")
    return ", ".join([*parts, f"seed {runner.config.seed}"])


def _saved(runner: Runner) -> str:
    """What a checkpoint is kept of, by the attributes of `ModelCheckpoint`."""
    found = [each for each in runner.callbacks if each.name == "model_checkpoint"]
    if not (found and runner.has_dir):
        return "saves no checkpoints"
    kept: Any = found[0]
    files = ["latest"] + ["best"] * (kept.save_top_k != 0)
    every = f" and {kept.keep_every}" if kept.keep_every is not None else ""
    return f"saves {' and '.join(files)}{every}"


def _best(runner: Runner) -> str:
    result, score = runner.best_result or {}, runner.best_score
    if score is None:
        return f"no finite {runner.monitor} was measured"
    last = "" if runner.latest_score is None else f", last {number(runner.latest_score)}"
    where = f"epoch {result['epoch']}, step {result['global_step']}"
    return f"best {runner.monitor} {number(score)} ({where}){last}"


def _next(runner: Runner) -> str:
    """The command that a user most likely wants now."""
    if runner.status in ("finished", "stopped"):
        root = _relative(Path(runner.config.project_root))
        if "tensorboard" in [each.name for each in runner.callbacks]:
            return f"tensorboard --logdir {shlex.quote(root)}"
        return f"danling show {runner.uuid.hex[:8]}"
    # a launcher's command is not known here, and a program in the command line is too long
    is_known = runner.world_size == 1 and "-c" not in sys.orig_argv
    command = shlex.join(_command()) if is_known else "the same command with"
    return f"{command} --resume {shlex.quote(_relative(runner.dir))}"


def _command() -> list[str]:
    """The command line of this process without an earlier `--resume`, and without secrets."""
    words = ["python", *sys.orig_argv[1:]] if sys.orig_argv else ["python"]
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.startswith("--resume"):
            kept.append(word)
        skip = word == "--resume"
    return mask_argv(kept)


def _relative(path: Path) -> str:
    """The path from the current folder where it lies below it, else the whole path."""
    whole = os.path.abspath(path)
    below = os.path.relpath(whole)
    return whole if below.startswith("..") else below


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02}m"
