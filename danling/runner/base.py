"""What every runner has: identity, paths, results, hooks, and the run that opens and closes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self
from uuid import UUID

from danling.callback import Callback
from danling.config.config import Config
from danling.config.settings import STATE_KEYS
from danling.distributed.world import World
from danling.errors import CheckpointError, RunError
from danling.metrics.history import Scored
from danling.run.run import RunOnDisk
from danling.runner.callbacks import Callbacks
from danling.runner.media_log import MediaLog
from danling.runner.owned import Owned
from danling.runner.progress import Clock, Counters
from danling.triggers import Moment

__all__ = ["BaseRunner"]


Status = Literal["running", "finished", "stopped", "failed", "preempted", "interrupted"]


class BaseRunner(Owned, Scored, MediaLog):
    """A run: configuration, identity, directory, results, callbacks; `with runner:` opens it.

    Args:
        config: The configuration; a mapping will do. The runner works on a copy of it, frozen
            during a run.
        callbacks: Callbacks besides the default ones; one of the same name takes a default one's
            place.
        default_callbacks: Whether there are default ones.

    Raises:
        ConfigError: A value in the configuration is wrong or cannot be written as JSON.
        CallbackError: Something in `callbacks` is not a callback, or two have one name.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        callbacks: Iterable[Callback] = (),
        default_callbacks: bool = True,
    ) -> None:
        from danling.defaults import default_callbacks as make_defaults

        self.config: Config = config.copy() if isinstance(config, Config) else Config(config or {})
        self.config.check()
        self.world = self._make_world()
        self.counters = Counters()
        self.clock = Clock()
        defaults = make_defaults() if default_callbacks else ()
        self.callbacks: Callbacks = Callbacks(callbacks, defaults)
        self.epoch_complete = False
        self.evaluations = 0
        self.stop_reason: str | None = None
        self.status: Status | None = None
        self.resume_report: dict[str, Any] | None = None
        self.logger = logging.getLogger("danling.run")
        self._set_up: list[Callback] = []
        self._asked: str | None = None  # by this process
        self._signal: int | None = None
        self._agreed_seconds = 0.0
        self.run = RunOnDisk(self.config, self.world)
        self.config.bind_state({name: self._state_reader(name) for name in STATE_KEYS})

    def _make_world(self) -> World:
        """The processes of this run; a platform that starts several overrides it."""
        return World()

    def init_logging(self) -> None:
        """Log to the console, and to `run.log` if there is a directory; what `Logging` calls.

        Only the main process does: the others' lines would be the same once more.
        """
        from danling.logs import open_logger

        main = self.is_main_process
        path = self.log_path if self.has_dir and main else None
        self.logger = open_logger(
            f"danling.run.{self.uuid.hex[:8]}", path, console=main, level=logging.INFO
        )

    # Processes

    @property
    def world_size(self) -> int:
        return self.world.size

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def distributed(self) -> bool:
        return self.world.size > 1

    @property
    def is_main_process(self) -> bool:
        return self.world.rank == 0

    # Progress

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.counters.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps completed."""
        return self.counters.global_step

    @property
    def batch_index(self) -> int:
        """Batches completed in this epoch."""
        return self.counters.batch_index

    @property
    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1; NaN where its length is unknown."""
        return float("nan")

    def now(self) -> Moment:
        """This point of the run, for triggers."""
        seconds = self._agreed_seconds if self.distributed else self.clock.seconds
        return Moment(self.global_step, self.epoch, seconds, self.progress)

    # Stopping

    @property
    def should_stop(self) -> bool:
        """Whether a stop was asked for."""
        return self.stop_reason is not None

    def stop(self, reason: str = "stop() was called") -> None:
        """End the training after this step; the first reason is kept, logged and saved.

        With several processes it is enough that one of them asks: all end together, within
        `poll_interval` steps.
        """
        self._asked = self._asked or reason
        if not self.distributed:
            self.stop_reason = self._asked

    def interrupt(self, number: int) -> None:
        """End the training after this step, and the run with the exit code of a signal."""
        self._signal = self._signal or number
        self.stop(f"signal {signal.Signals(number).name}")

    def agree(self) -> None:
        """Let a stop that any process asked for become that of all; a collective."""
        if not self.distributed:
            return
        asked, number, seconds = self.world.maximum(
            [self._asked is not None, self._signal or 0, self.clock.seconds]
        )
        self._agreed_seconds = seconds
        if asked and self.stop_reason is None:
            reasons = self.world.gather(self._asked)
            rank = next(rank for rank, reason in enumerate(reasons) if reason is not None)
            self._signal = int(number) or None
            self.stop_reason = f"{reasons[rank]} (rank {rank})"

    # The run: opened by `with`, closed whatever happens

    @property
    def in_run(self) -> bool:
        """Whether the run is open."""
        return self.callbacks.in_run

    def __enter__(self) -> Self:
        if self.in_run:
            raise RunError("this run is open already: leave its `with runner:` first")
        self.callbacks.rebuild()
        self.callbacks.in_run = True
        self.status, self.stop_reason, self._asked, self._signal = "running", None, None, None
        self._set_up = []
        try:
            self._open()
        except BaseException as error:
            self._unwind(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        try:
            if error is None:
                self._finish()
                self.agree()  # that nobody has failed: until here a failure of one ends all
        except BaseException as raised:
            error = raised
        self._unwind(error)
        if error is None or self._was_leaving(error):
            self._leave_together(error)
        elif kind is None:
            raise error

    def _was_leaving(self, error: BaseException | None) -> bool:
        """Whether the run had agreed to leave for a signal, and only its save failed.

        The scheduler is told as if it had not: what it does then, it does on the exit code.
        """
        agreed = self._signal is not None and self.stop_reason is not None
        return agreed and isinstance(error, CheckpointError)

    def _leave_together(self, error: BaseException | None) -> None:
        """Leave with the same exit code on all processes, when all have closed their files."""
        if self.distributed:
            self._signal = int(self.world.maximum([self._signal or 0])[0]) or None
        if self._signal is None:
            return
        if self.distributed and threading.current_thread() is threading.main_thread():
            # launchers send it to the others when the first one has left
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt(self.stop_reason) from error
        raise SystemExit(128 + self._signal) from error

    def _open(self) -> None:
        """Set up all callbacks, in order."""
        self.config.freeze()
        for callback in self.callbacks:
            self._set_up.append(callback)
            if errors := self.callbacks.call_all("on_setup", [callback], self):
                raise errors[0]

    def _finish(self) -> None:
        """End what is open, without an error: loops override it."""

    def _unwind(self, error: BaseException | None) -> None:
        """Tell all callbacks of an error and tear them down; the first error stays in front."""
        self.clock.stop()
        if error is None:
            self.status = self._status_at_end()
        else:
            self.status = self._status_of(error)
        others = (
            []
            if error is None
            else self.callbacks.call_all("on_exception", self.callbacks, self, error)
        )
        for callback in reversed(self._set_up):
            raised = self.callbacks.call_all("on_teardown", [callback], self)
            if raised and error is None:
                self.status = self._status_of(raised[0])
            others += raised
        self._set_up = []
        self.callbacks.in_run = False
        self.config.unfreeze()
        if error is None and others:
            error = others.pop(0)
            attach(error, others)
            self.world.take_leave(error)
            raise error
        if error is not None:
            attach(error, others)
            if not self._was_leaving(error):
                self.world.take_leave(error)

    def _status_at_end(self) -> Status:
        if self._signal is not None:
            return "interrupted" if self._signal == signal.SIGINT else "preempted"
        return "stopped" if self.should_stop else "finished"

    def _status_of(self, error: BaseException) -> Status:
        if self._was_leaving(error):
            return self._status_at_end()
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"

    def _state_reader(self, name: str) -> Any:
        def read() -> Any:
            value = getattr(self, name)
            return str(value) if isinstance(value, UUID) else value

        return read


def attach(error: BaseException, others: Iterable[BaseException]) -> None:
    """Say on an error what else went wrong while it left."""
    for other in others:
        notes = "".join(f"; {note}" for note in getattr(other, "__notes__", ()))
        error.add_note(f"and then {type(other).__name__}: {other}{notes}")
