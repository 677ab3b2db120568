"""End a run in good order when the machine is taken away or the time is up."""

from __future__ import annotations

import math
import mmap
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ref

from danling.callback import Callback, Priority
from danling.errors import CallbackError
from danling.run.record import TIME_BUDGET

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["Preemption"]

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
_UNITS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
_SAFETY = 1.5  # a save may take longer than the longest so far
_CLOSING_SECONDS = 10.0  # that a run may take to close before one more Ctrl-C interrupts that too
_NOTICE = b"\nstopping after this step and saving; Ctrl-C again stops at once\n"


class Preemption(Callback):
    """Save and stop after this step on SIGTERM, SIGUSR1 or Ctrl-C, or before the time is up.

    Schedulers announce the end of a job with a signal, and give it some seconds. The handler only
    takes a note; all processes then agree to stop, save at the next safe point and leave. The
    script ends with 128 + the number of the signal (143 for SIGTERM), with a KeyboardInterrupt
    for Ctrl-C, and the run's status is `preempted` or `interrupted`, so that `resume="auto"` goes
    on with it. A second Ctrl-C interrupts at once; while the run then closes its files, for up to
    ten seconds, further ones change nothing.

    Handlers are installed while a run is open, in the main thread only, and put back afterwards; a
    handler that was there before is called too, and a signal that was ignored stays ignored.
    DataLoader workers, which get the signals of their group too, leave it to the main process.

    On SLURM the end of the job (`SLURM_JOB_END_TIME`) is known: the run stops in time for a save
    that takes half as long again as the longest so far.

    Args:
        max_time: The time that this launch may take: seconds, a timedelta, or text as `"1h30m"`.
            The run stops, with status `stopped`, in time for a save. It is unfinished: with
            `resume="auto"` the same command goes on with it.

    Raises:
        CallbackError: `max_time` is not a positive duration.

    Example:
        >>> Preemption(max_time="1h30m").max_time
        5400.0
    """

    name = "preemption"
    priority = Priority.HIGHEST + 2
    only_watches = True

    def __init__(self, *, max_time: float | str | timedelta | None = None) -> None:
        self.max_time = None if max_time is None else _seconds(max_time)
        self._previous: dict[int, Handler] = {}
        self._process = os.getpid()
        self._announces = True
        self._signal: int | None = None
        self._told = False
        self._interrupts = self._ignored = 0
        self._closing_since: float | None = None
        self._runner: Callable[[], Runner | None] = _no_runner  # weak: nobody keeps the runner
        self._guarded: mmap.mmap | None = None  # one byte, that workers see too
        self._budgets: list[_Budget] = []

    def on_setup(self, runner: Runner) -> None:
        """Install the handlers, and start the clock."""
        self._process, self._announces = os.getpid(), runner.is_main_process
        self._signal, self._told, self._interrupts = None, False, 0
        self._closing_since, self._runner = None, ref(runner)
        self._budgets = _budgets(self.max_time)
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._install()

    def on_train_start(self, runner: Runner) -> None:
        """Stop, if it was asked for meanwhile."""
        self._poll(runner)

    def on_epoch_start(self, runner: Runner) -> None:
        """Stop, if it was asked for meanwhile."""
        self._poll(runner)

    def on_step(self, runner: Runner) -> None:
        """Stop, if it was asked for meanwhile."""
        if self._signal is not None or self._budgets:
            self._poll(runner)

    def on_evaluate_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Stop, if it was asked for meanwhile."""
        if self._signal is not None or self._budgets:
            self._poll(runner)

    def on_checkpoint(self, runner: Runner) -> None:
        """Start to measure a save, which comes after this."""
        for budget in self._budgets:
            budget.start_save()

    def on_save(self, runner: Runner, path: Path) -> None:
        """Measure the save."""
        for budget in self._budgets:
            budget.end_save()

    def on_teardown(self, runner: Runner) -> None:
        """Put the handlers back; a signal that came too late for a hook is passed on."""
        self._uninstall()
        self._budgets = []
        self._pass_on(runner)
        self._runner = _no_runner

    def _poll(self, runner: Runner) -> None:
        self._pass_on(runner)
        for budget in list(self._budgets):
            if (left := budget.time_is_up()) is None:
                continue
            self._budgets.remove(budget)
            runner.logger.info(
                "%s: %.0f s are left, the longest save took %.1f s", budget.what, left, budget.save
            )
            if budget.signal is None:
                runner.stop(f"{budget.what} is reached", evaluate=True)
            else:
                self._signal = self._signal or budget.signal
                self._pass_on(runner)

    def _pass_on(self, runner: Runner) -> None:
        if self._signal is not None and not self._told and runner.in_run:
            self._told = True
            runner.interrupt(self._signal)

    def _install(self) -> None:
        self._guarded = self._guarded or mmap.mmap(-1, 1)
        self._guarded[0] = 1
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous is None or previous is signal.SIG_IGN:  # not Python's, or as under nohup
                continue
            self._previous[number] = previous
            signal.signal(number, self._handle)

    def _uninstall(self) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:  # else somebody has replaced it since
                signal.signal(number, previous)
        self._previous = {}
        if self._guarded is not None:
            self._guarded[0] = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Take a note and nothing else: this runs between any two instructions of a step."""
        if os.getpid() != self._process:
            self._handle_in_child(number)
            return
        self._signal = self._signal or number
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1 and self._may_interrupt():
                raise KeyboardInterrupt
            if self._announces and self._interrupts == 1:
                _tell_terminal()
        previous = self._previous.get(number)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)

    def _may_interrupt(self) -> bool:
        """Whether an exception may be raised now: not where it would keep the run from closing.

        After the first one, and while the callbacks are torn down, another exception would cut the
        closing short, and run.json would say "running" for ever. A closing that hangs is cut.
        """
        runner, now = self._runner(), time.monotonic()
        is_closing = runner is None or runner.status != "running"
        if self._closing_since is None:
            self._closing_since = now
            return not is_closing
        if now - self._closing_since > _CLOSING_SECONDS:
            self._closing_since = now
            return True
        return False

    def _handle_in_child(self, number: int) -> None:
        """In a DataLoader worker leave it to the parent; elsewhere do what was done before.

        A parent whose run is over ends its workers by SIGTERM, and waits for them without end.
        """
        from torch.utils.data import get_worker_info

        self._ignored += number == signal.SIGTERM
        is_guarded = self._guarded is not None and self._guarded[0] == 1
        if get_worker_info() is not None and is_guarded and self._ignored < 2:
            return
        signal.signal(number, self._previous.get(number, signal.SIG_DFL))
        os.kill(os.getpid(), number)


class _Budget:
    """A time by which a run must have saved.

    Args:
        what: The name of the limit, for messages.
        seconds: The number of seconds from now to the limit.
        number: The signal that the run acts as if it got; None for a plain stop.
    """

    def __init__(self, what: str, seconds: float, number: int | None = None) -> None:
        self.what = what
        self.signal = number
        self.save = min(60.0, 0.05 * max(seconds, 0.0))  # until one was measured
        self._end = time.monotonic() + seconds
        self._last = self._save_started = time.monotonic()
        self._pause = 0.0
        self._measured = False

    def time_is_up(self) -> float | None:
        """The seconds left, when they are just enough for a save; None when there are more."""
        now = time.monotonic()
        self._pause, self._last = max(self._pause, now - self._last), now
        left = self._end - now
        return left if left <= _SAFETY * self.save + self._pause else None

    def start_save(self) -> None:
        self._save_started = time.monotonic()

    def end_save(self) -> None:
        now = time.monotonic()
        seconds = now - self._save_started
        self.save = max(self.save, seconds) if self._measured else seconds
        self._measured, self._last = True, now


def _no_runner() -> None:
    return None


def _budgets(max_time: float | None) -> list[_Budget]:
    budgets = [] if max_time is None else [_Budget(f"{TIME_BUDGET}{max_time:g} s", max_time)]
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        left = int(end) - time.time()
        budgets.append(_Budget("the end of the SLURM job", left, signal.SIGTERM))
    return budgets


def _seconds(duration: float | str | timedelta) -> float:
    seconds = math.nan
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        text = duration.replace(" ", "")
        parts = re.findall(r"(\d+(?:\.\d+)?)(d|h|min|m|s)", text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif not isinstance(duration, bool):
        seconds = float(duration)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise CallbackError(
            f"Preemption(max_time={duration!r}): write seconds, a timedelta, or '1h30m'"
        )
    return seconds


def _tell_terminal() -> None:
    try:
        os.write(2, _NOTICE)  # no lock and no buffer: safe in a handler
    except OSError:
        return
