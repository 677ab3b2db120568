"""The base of all runners: identity, directory, results, hooks, and how a run opens and closes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from uuid import UUID

from danling.callback import Callback, Priority
from danling.config import Config
from danling.config.settings import STATE_KEYS
from danling.distributed.world import World
from danling.errors import CheckpointError, RunError
from danling.files.json import to_plain
from danling.logs import number
from danling.metrics.history import History
from danling.run.run import RunOnDisk
from danling.runner.callbacks import Callbacks, read_callbacks
from danling.runner.habits import no_attribute
from danling.runner.progress import Clock, Counters
from danling.runner.stopping import Stopping, exit_for_signal
from danling.triggers import Moment

if TYPE_CHECKING:
    from danling.checkpoint.saving import Save
    from danling.checkpoint.store import CheckpointStore
    from danling.identity.code import Code
    from danling.metrics.averages import Reduction
    from danling.run.directory import RunPaths

__all__ = ["BaseRunner"]

_Function = TypeVar("_Function", bound=Callable[..., None])
Status = Literal["running", "finished", "stopped", "failed", "preempted", "interrupted"]


class BaseRunner:
    """A run without a platform: `with runner:` opens it, and a subclass trains in it.

    Everything that a callback may use of a runner is declared here. A platform trains by firing the
    hooks through `callbacks`, moving `counters`, and adding results to `history`; it answers what
    has no answer here: the model, the device, the length of the training.

    Args:
        config: The configuration; a mapping will do. The runner works on a copy of it, which is
            frozen during a run.
        callbacks: The callbacks besides the default ones; one of the same name takes a default
            one's place.
        default_callbacks: Whether there are default ones.

    Attributes:
        model: The model that is trained.
        criterion: The function of (output, target) that gives the loss.
        optimizer: The optimizer, or several of them.
        scheduler: The scheduler, or several of them.
        device: The device on which the model is.
        precision: The precision of a forward: "no" is that of the weights.
        distributed_type: The kind of distribution over processes, in Accelerate's words.
        evaluations: The number of evaluations of this run so far.
        is_log_step: Whether the values of this step are logged: a hook may read tensors then.
        epoch_complete: Whether the last epoch was not cut by a stop, a limit or a `break`.
        resume_report: The report on how exactly a resumed run goes on; None where it began.

    Raises:
        ConfigError: A value in the configuration is wrong or cannot be written as JSON.
        CallbackError: Something in `callbacks` is not a callback, or two have one name.
    """

    device: Any = "cpu"
    precision: str = "no"
    distributed_type: str = "NO"
    accum_steps: int = 1
    """The micro-batches of one optimizer step."""

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
        self.world: World = self._make_world()
        self.callbacks = Callbacks(callbacks, make_defaults() if default_callbacks else ())
        self._configured = configured = read_callbacks(self.config, self.callbacks)
        self.callbacks.configure(configured.callbacks, configured.left_out)
        self.run = RunOnDisk(self.config, self.world, identify, configured.watching)
        self.stopping = Stopping(self.world)
        self.counters = Counters()
        self.clock = Clock()
        self.model: Any = None
        self.criterion: Any = None
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.epoch_complete = False
        self.is_log_step = False
        self.evaluations = 0
        self.last_evaluation = Moment()
        self.status: Status | None = None
        self.resume_report: dict[str, Any] | None = None
        self.logger = logging.getLogger("danling.run")
        self._set_up: list[Callback] = []
        self._history: History | None = None
        self._checkpoints: CheckpointStore | None = None
        self.config.bind_state({name: partial(self._config_state, name) for name in STATE_KEYS})

    if not TYPE_CHECKING:  # to type checkers, a class with a `__getattr__` has every name

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property raised an AttributeError: again, as it was
                return object.__getattribute__(self, name)
            raise no_attribute(self, name)

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
            f"danling.run.{self.uuid.hex[:8]}",
            path,
            console=main,
            level=logging.INFO,
            held=self.has_dir and not self.run.accepted,
        )

    # Processes

    @property
    def world_size(self) -> int:
        """The number of processes of this run."""
        return self.world.size

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.world.rank

    @property
    def local_rank(self) -> int:
        """The rank of this process on its machine."""
        return self.rank

    @property
    def distributed(self) -> bool:
        """Whether several processes train together."""
        return self.world.size > 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files."""
        return self.world.rank == 0

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.local_rank == 0

    # Identity and directory

    @property
    def code(self) -> Code:
        """The code that runs, as far as it could be found out."""
        return self.run.code

    @property
    def experiment_uuid(self) -> UUID:
        """The identity of the code: the commit, and what differs from it in the code that runs."""
        return self.run.experiment_uuid

    @property
    def experiment_id(self) -> str:
        """The hex digits of `experiment_uuid`."""
        return self.experiment_uuid.hex

    @property
    def run_uuid(self) -> UUID:
        """The identity of code and configuration: the same on every machine."""
        return self.run.run_uuid

    @property
    def run_id(self) -> str:
        """The hex digits of `run_uuid`."""
        return self.run_uuid.hex

    @property
    def uuid(self) -> UUID:
        """The random identity of this run, drawn when its directory is claimed."""
        return self.run.uuid

    @property
    def name(self) -> str:
        """The name of the run: `{experiment_name}-{run_name}`."""
        return self.run.name

    @property
    def id(self) -> str:
        """The short form of all three: `{experiment_id:.8}-{run_id:.8}-{uuid:.8}`."""
        return self.run.id

    @property
    def has_dir(self) -> bool:
        """Whether the run has a directory."""
        return self.run.claimed

    @property
    def paths(self) -> RunPaths:
        """The place of each file of the run.

        Raises:
            RunError: No directory was claimed.
        """
        return self.run.paths

    @property
    def dir(self) -> Path:
        """The directory of the run."""
        return self.paths.path

    @property
    def checkpoint_dir(self) -> Path:
        """The directory of the run's checkpoints."""
        return self.paths.checkpoints

    @property
    def log_path(self) -> Path:
        """The file of the run's log."""
        return self.paths.log

    def claim_directory(self) -> Path:
        """Make a directory, or take that of the run to resume; what `RunDirectory` calls."""
        return self.run.claim()

    def accept_directory(self) -> None:
        """Go on in the directory that was claimed; what follows a resume that was not refused.

        Until then nothing in the directory is changed, and `run.log` is not written.
        """
        from danling.logs import write_held

        self.run.accept()
        write_held(self.logger)

    def release_directory(self) -> None:
        """Let other processes work in the directory again."""
        self.run.release()

    # Progress

    @property
    def epoch(self) -> int:
        """The number of epochs completed."""
        return self.counters.epoch

    @property
    def global_step(self) -> int:
        """The number of optimizer steps completed."""
        return self.counters.global_step

    @property
    def batch_index(self) -> int:
        """The number of batches completed in this epoch."""
        return self.counters.batch_index

    @property
    def total_steps(self) -> int | None:
        """The optimizer steps of the whole training; None where the length is unknown."""
        return None

    @property
    def steps_per_epoch(self) -> int | None:
        """The optimizer steps of an epoch; None where they are unknown."""
        return None

    @property
    def progress(self) -> float:
        """The share of the training that is done, from 0 to 1; NaN where its length is unknown."""
        total = self.total_steps
        return float("nan") if not total else min(self.global_step / total, 1.0)

    @property
    def is_ending(self) -> bool:
        """Whether the training ends at this point: a limit is reached or a stop was asked for."""
        limits = [
            (self.config.max_epochs, self.epoch),
            (self.config.max_steps, self.global_step),
        ]
        reached = any(limit is not None and done >= limit for limit, done in limits)
        return self.should_stop or reached

    def __repr__(self) -> str:
        place = f", dir={os.fspath(self.dir)!r}" if self.has_dir else ""
        counts = f"epoch={self.epoch}, global_step={self.global_step}"
        return f"{type(self).__name__}(status={self.status!r}, {counts}{place})"

    def _repr_html_(self) -> str:
        """The HTML of the runner for a notebook: its state, the best value and the directory."""
        done = f"{self.status or 'not started'}: epoch {self.epoch}, step {self.global_step}"
        rows = {"state": done, "best": "none yet", "directory": "none yet"}
        if self.best_result is not None and self.best_score is not None:
            where = f"epoch {self.best_result['epoch']}, step {self.best_result['global_step']}"
            rows["best"] = f"{self.monitor} {number(self.best_score)} ({where})"
        if self.has_dir:
            rows["directory"] = os.fspath(self.dir)
        cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"

    def now(self) -> Moment:
        """The point that the run has reached, for triggers."""
        counters, several = self.counters, self.world.size > 1
        seconds = self.stopping.seconds if several else self.clock.seconds
        return Moment(
            counters.global_step, counters.epoch, seconds, self.progress, self.epoch_fraction
        )

    @property
    def epoch_fraction(self) -> float:
        """The share of the open epoch that is done, less than 1; 0 where that is unknown."""
        return 0.0

    # Data, model and optimizers: a platform answers

    @property
    def splits(self) -> list[str]:
        """The splits that there is data for."""
        return []

    @property
    def evaluation_splits(self) -> list[str]:
        """The splits that a training evaluates: all but `train` and `test`."""
        return [split for split in self.splits if split not in ("train", "test")]

    def batches_of(self, split: str) -> int | None:
        """The number of batches of a split on this process; None where it is unknown."""
        return None

    @property
    def batch_size(self) -> int | None:
        """The samples of a training batch of one process; None where they are unknown."""
        return None

    @property
    def batch_size_equivalent(self) -> int | None:
        """The samples of one optimizer step, over all processes and micro-batches."""
        size = self.batch_size
        return None if size is None else size * self.world_size * self.accum_steps

    @property
    def unwrapped_model(self) -> Any:
        """The model without what a platform wrapped around it."""
        return self.model

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers, as a list."""
        given = self.optimizer
        parts = list(given.values()) if isinstance(given, Mapping) else [given]
        return [
            optimizer
            for part in parts
            for optimizer in (part if isinstance(part, list) else [part])
            if optimizer is not None
        ]

    @property
    def gradients_are_readable(self) -> bool:
        """Whether `.grad` of the parameters can be read before a step."""
        return True

    @property
    def grad_norm(self) -> Any:
        """The norm of all gradients of this step, before clipping.

        Raises:
            RunError: This runner does not know it, or no step is open.
        """
        raise RunError(f"{type(self).__name__} has no grad_norm")

    def log(
        self,
        name: str | Mapping[str, Any],
        value: Any = None,
        *,
        n: Any = None,
        reduce: Reduction = "mean",
        on: Literal["step", "epoch"] = "step",
    ) -> None:
        """Log a value, or several by name, with those of the step.

        Raises:
            RunError: This runner logs nothing.
        """
        raise RunError(f"{type(self).__name__} has no log()")

    # Results

    @property
    def history(self) -> History:
        """The results and their scores; the monitor is settled on first use."""
        if self._history is None:
            usual = "val/loss" if "val" in self.evaluation_splits else "train/loss"
            monitor = self.config.monitor or usual
            strict = self.config.monitor is not None
            self._history = History(monitor, self.config.monitor_mode, strict=strict)
        return self._history

    @property
    def monitor(self) -> str:
        """The tag of the value that is the score."""
        return self.history.monitor

    @property
    def results(self) -> list[dict[str, Any]]:
        """One `{"epoch", "global_step", "train": {...}, "val": {...}}` per epoch and evaluation."""
        return self.history.results

    @property
    def latest_result(self) -> dict[str, Any] | None:
        """The last result; None where there is none."""
        return self.results[-1] if self.results else None

    @property
    def best_result(self) -> dict[str, Any] | None:
        """The result with the best score; None where there is none."""
        return self.history.best

    @property
    def scores(self) -> list[float | None]:
        """The monitored value of each result."""
        return self.history.scores

    @property
    def latest_score(self) -> float | None:
        """The monitored value of the last result."""
        return self.scores[-1] if self.scores else None

    @property
    def best_score(self) -> float | None:
        """The best of the scores; None where there is none."""
        return self.history.best_score

    @property
    def is_best(self) -> bool:
        """Whether the latest result is the best so far."""
        return self.history.is_best

    # Callbacks

    def on(self, hook: str, *, priority: int = Priority.NORMAL) -> Callable[[_Function], _Function]:
        """Attach a function to a hook: `@runner.on("step")`; its first argument is the runner.

        The function is a `LambdaCallback` named after it and the hook: `greet` at `"epoch_end"` is
        `runner.callbacks["greet_on_epoch_end"]`.

        Args:
            hook: The name of the hook, with or without `on_`.
            priority: The place among the callbacks of the hook, see `Priority`.

        Raises:
            CallbackError: There is no such hook, the function does not take its arguments, or one
                of its name is there.
            RunError: The run is open.

        Example:
            >>> from danling.testing import TinyRunner
            >>> runner = TinyRunner({"max_epochs": 2})
            >>> @runner.on("epoch_end")
            ... def greet(runner):
            ...     print("epoch", runner.epoch)
            >>> runner.train()
            epoch 1
            epoch 2
        """
        from danling.defaults import function_callback

        def attach_to_hook(function: _Function) -> _Function:
            self.callbacks.append(function_callback(hook, function, priority))
            return function

        return attach_to_hook

    # What is more than a number: every attached callback that can show it does

    def log_text(self, tag: str, markdown: str) -> None:
        """Show a text, written in Markdown.

        `TensorBoard` has a method for each of these; any callback may define `log_image(runner,
        tag, image)` and is asked as well. Where there is none, nothing happens. Each copies values
        to the host: call it on a trigger, not on every step.
        """
        self._show("log_text", tag, markdown)

    def log_image(self, tag: str, image: Any) -> None:
        """Show an image, or a batch of them as a grid: see `danling.tensorboard.media.image`."""
        self._show("log_image", tag, image)

    def log_figure(self, tag: str, figure: Any) -> None:
        """Show a figure of matplotlib; it stays open."""
        self._show("log_figure", tag, figure)

    def log_audio(self, tag: str, samples: Any, sample_rate: int = 44_100) -> None:
        """Let a sound be heard: one channel, samples from -1 to 1."""
        self._show("log_audio", tag, samples, sample_rate)

    def log_histogram(self, tag: str, values: Any) -> None:
        """Show how values are distributed."""
        self._show("log_histogram", tag, values)

    def log_pr_curve(self, tag: str, labels: Any, scores: Any) -> None:
        """Show precision against recall: labels of 0 and 1, and probabilities."""
        self._show("log_pr_curve", tag, labels, scores)

    def log_embedding(self, tag: str, vectors: Any, labels: Sequence[Any] = ()) -> None:
        """Show points of many dimensions, a row each, with a label each."""
        self._show("log_embedding", tag, vectors, labels)

    def log_graph(self, inputs: Any) -> None:
        """Show the graph of the model, traced with an example of its input."""
        self._show("log_graph", inputs)

    def _show(self, method: str, *arguments: Any) -> None:
        for callback in list(self.callbacks):
            show = getattr(callback, method, None)
            if show is not None:
                show(self, *arguments)

    # Checkpoints

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoint files of the run."""
        from danling.checkpoint.store import CheckpointStore

        if self._checkpoints is None:
            self._checkpoints = CheckpointStore(self.checkpoint_dir, run=str(self.uuid))
        return self._checkpoints

    def state_dict(self, *, alone: bool = False) -> dict[str, Any]:
        """The state that a run goes on from; a platform adds model, optimizers and streams.

        Args:
            alone: Whether only this process takes part, as where another one is gone.
        """
        return {
            "config": to_plain(self.config.resolved() | self.config.to_dict(state=True)),
            "results": self.history.settled,
            "callbacks": self.callbacks.state_dict(),
            "data": {**asdict(self.counters), "last_evaluation": asdict(self.last_evaluation)},
            "run": {
                "uuid": str(self.uuid),
                "world_size": self.world_size,
                "accum_steps": self.accum_steps,
                "seconds": self.clock.seconds,
                "stop_reason": self.stop_reason,
                "stop_waiting": self.stopping.waiting,
                "resume_report": self.resume_report,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> list[str]:
        """Take what `state_dict` gave.

        Returns:
            The problems with what could not be loaded, where `strict` is not set.

        Raises:
            CheckpointError: The state of a callback does not load, and `strict` is set.
        """
        problems = self._load_callbacks(state, strict=strict)
        self._load_counters(state)
        return problems

    def _load_counters(self, state: Mapping[str, Any]) -> None:
        for name in ("epoch", "global_step", "batch_index"):
            setattr(self.counters, name, state["data"][name])
        self.history.restore(state["results"])
        self.clock.before = state["run"]["seconds"]
        if (waiting := state["run"].get("stop_waiting")) is not None:
            self.stopping.wait(waiting)
        self.last_evaluation = Moment(**state["data"]["last_evaluation"])

    def _load_callbacks(self, state: Mapping[str, Any], *, strict: bool) -> list[str]:
        problems, news = self.callbacks.load_state_dict(state["callbacks"], strict=strict)
        if news:
            self.logger.warning("the callbacks differ from those of the checkpoint (%s)", news)
        return problems

    def make_save(
        self,
        names: tuple[str, ...],
        contents: Mapping[str, Any],
        reasons: Mapping[str, float] | None = None,
    ) -> Save:
        """A save of this point of the run.

        Args:
            names: The names of the file.
            contents: The state that `state_dict` gave, or a part of it.
            reasons: Numbers that say why the file is kept.
        """
        from danling.checkpoint.saving import Save

        score = {} if self.latest_score is None else {self.monitor: self.latest_score}
        numbers = score | dict(reasons or {})
        return Save(names, contents, None, self.global_step, self.epoch, numbers)

    def save_checkpoint(self, *names: str) -> Path:
        """Commit a checkpoint under the given names, or as `latest`.

        Raises:
            RunError: The run has no directory.
            CheckpointError: It could not be written; what was there before is intact.
        """
        path = self.make_save(names or ("latest",), self.state_dict()).commit(
            self.world, self.checkpoints
        )
        self.callbacks("on_save", self, path)
        return path

    # Stopping

    @property
    def should_stop(self) -> bool:
        """Whether a stop was asked for."""
        return self.stopping.reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the run stops early; None where it does not."""
        return self.stopping.reason

    def stop(self, reason: str = "stop() was called", *, evaluate: bool = False) -> None:
        """End the training after this step; the first reason is kept, logged and saved.

        Before `min_epochs` and `min_steps` it goes on, and ends when both are reached. With several
        processes it is enough that one of them asks: all end together, within `poll_interval`
        steps.

        Args:
            reason: Why it ends.
            evaluate: Whether `train()` evaluates at its end what was never evaluated, as it does
                where `max_steps` ends it.
        """
        if self.stopping.held and self.stopping.waiting is None:
            self.logger.info("%s; the training goes on to min_epochs and min_steps", reason)
        self.stopping.ask(reason, evaluate=evaluate)

    def interrupt(self, number: int) -> None:
        """End the training after this step, and the run with the exit code of a signal."""
        self.stopping.interrupt(number)

    def agree(self) -> None:
        """Let a stop that any process asked for become that of all; a collective."""
        self.stopping.agree(self.clock.seconds)

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
        self.status = "running"
        self.stopping.reset()
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
            if (number := self.stopping.agree_on_signal()) is not None:
                exit_for_signal(number, self.stop_reason, error, alone=not self.distributed)
        elif kind is None:
            raise error

    def _open(self) -> None:
        """Set up all callbacks, in order."""
        self._configured.check_unchanged(self.config)
        self.config.freeze()
        for callback in self.callbacks:
            self._set_up.append(callback)
            if errors := self.callbacks.call_all("on_setup", [callback], self):
                raise errors[0]

    def _finish(self) -> None:
        """End what is open, without an error; a platform overrides it."""

    def _unwind(self, error: BaseException | None) -> None:
        """Tell all callbacks of an error and tear them down; the first error stays in front."""
        self.clock.stop()
        self.status = self._status_at_end(error)
        others: list[BaseException] = []
        if error is not None:
            others = self.callbacks.call_all("on_exception", self.callbacks, self, error)
        for callback in reversed(self._set_up):
            raised = self.callbacks.call_all("on_teardown", [callback], self)
            if raised and error is None:
                self.status = self._status_at_end(raised[0])
            others += raised
        self._set_up = []
        self.callbacks.in_run = False
        self.config.unfreeze()
        if error is None and others:
            error = others.pop(0)
            attach(error, others)
            self.world.let_failed_rank_report(error)
            raise error
        if error is not None:
            attach(error, others)
            if not self._was_leaving(error):
                self.world.let_failed_rank_report(error)

    def _was_leaving(self, error: BaseException | None) -> bool:
        """Whether the run had agreed to leave for a signal, and only its save failed.

        The scheduler is told as if it had not: what it does then, it does on the exit code.
        """
        agreed = self.stopping.signal is not None and self.should_stop
        return agreed and isinstance(error, CheckpointError)

    def _status_at_end(self, error: BaseException | None) -> Status:
        if error is not None and not self._was_leaving(error):
            return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        return self.stopping.status

    def _config_state(self, name: str) -> Any:
        value = getattr(self, name)
        return str(value) if isinstance(value, UUID) else value


def identify(folder: Path) -> Mapping[str, Any]:
    """The configuration, with the ids of its run, in the newest checkpoint of a folder.

    Raises:
        CheckpointError: There is no valid checkpoint.
    """
    from danling.checkpoint.reading import read_checkpoint
    from danling.checkpoint.store import CheckpointStore

    problem = CheckpointError(errno.ENOENT, "there is no checkpoint", str(folder))
    for entry in CheckpointStore(folder).candidates():
        try:
            config: Mapping[str, Any] = read_checkpoint(entry.path, whole=False)["config"]
        except CheckpointError as error:
            problem = error
        else:
            return config
    raise problem


def attach(error: BaseException, others: Iterable[BaseException]) -> None:
    """Say on an error what else went wrong while it left."""
    for other in others:
        notes = "".join(f"; {note}" for note in getattr(other, "__notes__", ()))
        error.add_note(f"and then {type(other).__name__}: {other}{notes}")
