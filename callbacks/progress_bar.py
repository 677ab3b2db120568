"""The progress of a training: a bar on a terminal and in a notebook, lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from danling.callback import Callback, Priority
from danling.errors import CallbackError
from danling.logs import console, in_notebook, number

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["ProgressBar"]

_COLUMNS = 80
_REST = 60  # of a bar: the label, the counts, the times and the speed


class ProgressBar(Callback):
    """Show the progress of the training, its speed, and the latest loss and metrics.

    On a terminal this is a bar of tqdm on stderr, with a second one during an evaluation or a
    prediction. In a notebook it is on stdout, and a widget where `ipywidgets` is installed.
    Elsewhere, as in the log file of a batch system or on a terminal with `TERM=dumb`, it is a plain
    line every 30 seconds, with the time left. Only the main process shows it. The numbers are those
    that are logged anyway, drawn at intervals of time: a step costs a look at the clock and never
    waits for the device. The variables of tqdm work: `TQDM_DISABLE=1` shows nothing,
    `TQDM_MININTERVAL=1` draws once per second.

    Args:
        interval: The number of seconds between two plain lines.

    Raises:
        CallbackError: The interval is not positive.

    Example:
        >>> ProgressBar(interval=60).name
        'progress_bar'
    """

    name = "progress_bar"
    priority = Priority.LOW
    only_watches = True

    def __init__(self, interval: float = 30.0) -> None:
        if not interval > 0:
            raise CallbackError(f"ProgressBar(interval={interval!r}): must be positive, in seconds")
        self.interval = interval
        self._training: _Bar | _Lines | None = None  # the training, in the form that fits
        self._other: _Bar | None = None  # an evaluation or a prediction
        self._due = math.inf
        self._batches = 0
        self._numbers: dict[str, float] = {}

    def on_train_start(self, runner: Runner) -> None:
        """Show the training, from where it goes on."""
        self._numbers = {}
        if not runner.is_main_process or os.environ.get("TQDM_DISABLE"):
            return
        total, done = runner.total_steps, _done(runner)
        if _can_draw():
            self._training = _Bar(total, done, "step", "")
        else:
            self._training = _Lines(total, done, self.interval)
        self._due = time.monotonic() + self._training.interval

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Keep the numbers for the next time something is drawn."""
        for tag, value in metrics.items():
            if tag.startswith("train/") or tag == runner.monitor:
                self._numbers[tag.removeprefix("train/")] = value

    def on_step(self, runner: Runner) -> None:
        """Draw when it is time to."""
        if time.monotonic() >= self._due:
            self._draw(runner)

    def on_train_end(self, runner: Runner) -> None:
        """Leave the finished bar on the screen."""
        if isinstance(self._training, _Lines):
            self._numbers = {}  # those of the last epoch are in its row
        self._draw(runner)
        self._close()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Leave the bar where it is, so that the traceback begins on a line of its own."""
        if isinstance(self._training, _Bar):
            self._draw(runner)
        self._close()

    def on_teardown(self, runner: Runner) -> None:
        """Close what is still open."""
        self._close()

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Show an evaluation below the training."""
        self._open_other(runner, split)

    def on_evaluate_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Draw when it is time to."""
        self._count_batch()

    def on_evaluate_end(self, runner: Runner, split: str, result: Mapping[str, float]) -> None:
        """Take the second bar away."""
        self._close_other()

    def on_predict_start(self, runner: Runner, split: str) -> None:
        """Show a prediction."""
        self._open_other(runner, split)

    def on_predict_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Draw when it is time to."""
        self._count_batch()

    def on_predict_end(self, runner: Runner, split: str) -> None:
        """Take the second bar away."""
        self._close_other()

    def _draw(self, runner: Runner) -> None:
        if self._training is None:
            return
        epochs = runner.config.max_epochs
        # within an epoch its number, and the number of epochs after the last one
        current = runner.epoch + (not runner.epoch_complete)
        label = f"epoch {current}" if epochs is None else f"epoch {min(current, epochs)}/{epochs}"
        self._training.total = runner.total_steps
        self._training.show(_done(runner), label, self._numbers)
        self._due = time.monotonic() + self._training.interval

    def _open_other(self, runner: Runner, split: str) -> None:
        self._close_other()
        if runner.is_main_process and _can_draw() and not os.environ.get("TQDM_DISABLE"):
            self._other = _Bar(runner.batches_of(split), 0, "batch", split, leave=False)
            self._batches = 0

    def _count_batch(self) -> None:
        if self._other is not None:
            self._batches += 1
            if time.monotonic() >= self._other.due:
                self._other.show(self._batches, None, {})

    def _close_other(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None

    def _close(self) -> None:
        self._close_other()
        if self._training is not None:
            self._training.close()
            self._training = None
        self._due = math.inf


def _done(runner: Runner) -> int:
    """The steps that were taken; of several optimizers that step apart, each batch is one step."""
    total = runner.total_steps
    if len(runner.optimizers) < 2 or not total:
        return runner.global_step
    return round(runner.progress * total)


class _Bar:
    """A bar of tqdm that is drawn at each call of `show`."""

    def __init__(
        self, total: int | None, done: int, unit: str, label: str, *, leave: bool = True
    ) -> None:
        sized = not in_notebook() and _has_size()
        self._bar: tqdm[Any] = _tqdm()(
            total=total,
            initial=done,
            unit=unit,
            desc=label,
            leave=leave,
            miniters=1,
            dynamic_ncols=sized,
            ncols=None if sized else 80,
            nrows=None if sized else 24,
            file=console(),
        )
        self.interval = self._bar.mininterval
        self.due = time.monotonic() + self.interval
        self._bar.mininterval = 0

    @property
    def total(self) -> int | None:
        return self._bar.total  # type: ignore[return-value]  # tqdm says a float

    @total.setter
    def total(self, total: int | None) -> None:
        self._bar.total = total

    def show(self, done: int, label: str | None, numbers: Mapping[str, float]) -> None:
        if label is not None:
            self._bar.set_description_str(label, refresh=False)
        if numbers:
            self._bar.set_postfix_str(_fitting(numbers, _width() - _REST), refresh=False)
        self._bar.update(done - self._bar.n)
        self.due = time.monotonic() + self.interval

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Plain lines, for files and pipes."""

    def __init__(self, total: int | None, done: int, interval: float) -> None:
        self.interval = interval
        self.total = total
        self._first = self._last = (time.monotonic(), done)

    def show(self, done: int, label: str | None, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        rate = (done - self._last[1]) / max(now - self._last[0], 1e-9)
        speed = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
        parts = [f"{label}, step {done}", f"{speed} step/s"]
        if self.total:
            parts[0] += f"/{self.total} ({done / self.total:.0%})"
        if self.total and done < self.total:
            average = (done - self._first[1]) / max(now - self._first[0], 1e-9)
            left = (self.total - done) / average if average else math.inf
            parts.append(f"{_duration(left)} left")
        self._last = (now, done)
        line = f"{time.strftime('%H:%M:%S')} {', '.join(parts)}"
        if shown := _fitting(numbers, _COLUMNS - len(f"{line}, ") - 1):
            line += f", {shown}"
        with contextlib.suppress(OSError):  # its reader has gone; there is nobody left to tell
            print(line, file=console(), flush=True)

    def close(self) -> None:
        """There is nothing to close."""


def _can_draw() -> bool:
    """Whether a bar can be drawn: a dumb terminal has no way back to the start of a line."""
    if in_notebook():
        return True
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return is_terminal and os.environ.get("TERM") != "dumb"


def _tqdm() -> type[tqdm[Any]]:
    if in_notebook() and find_spec("ipywidgets") is not None:  # as tqdm.auto, without its warning
        from tqdm.notebook import tqdm_notebook

        return tqdm_notebook
    return tqdm


def _has_size() -> bool:
    """Whether the terminal knows its size; some of containers say 0, where tqdm draws nothing."""
    with contextlib.suppress(OSError, ValueError):
        return all(os.get_terminal_size(sys.stderr.fileno()))
    return False


def _width() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns if _has_size() else _COLUMNS


def _fitting(numbers: Mapping[str, float], width: int) -> str:
    """The first of the numbers, as many as have room: half a number would be another number."""
    text = ""
    for name, value in numbers.items():
        more = f"{text}, {name} {number(value)}".lstrip(", ")
        if len(more) > width:
            break
        text = more
    return text


def _duration(seconds: float) -> str:
    return tqdm.format_interval(seconds) if math.isfinite(seconds) else "?"
