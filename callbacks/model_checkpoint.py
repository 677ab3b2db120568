"""When a checkpoint is saved, and which ones are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danling.callback import Priority
from danling.callbacks.monitor import Monitor
from danling.catalog import is_numbered
from danling.errors import CallbackError, CheckpointError
from danling.triggers import Every, Moment

if TYPE_CHECKING:
    from danling.catalog import Entry
    from danling.checkpoint import CheckpointStore
    from danling.runner import AccelerateRunner as Runner
    from danling.writer import AsyncWriter

__all__ = ["ModelCheckpoint"]

_FIRST = "model_checkpoint"


class ModelCheckpoint(Monitor):
    """Save the run: `latest.pth` to go on from, `best.pth` to use, numbered files to keep.

    A run that dies goes on from `latest.pth`. `best.pth` is written at each evaluation that
    improves. Further ones, each with a `name`, follow other values: they write `best-{name}.pth`.

    Args:
        every: When `latest.pth` is saved, besides the end; None: only then.
        monitor: What `best.pth` follows, as `"val/accuracy"`; by default the monitor of the run.
        mode: Whether lower (`"min"`) or higher (`"max"`) is better.
        save_top_k: How many of the best are kept: 1 is `best.pth`, 0 none, more are numbered files.
        keep_every: When a numbered file, `epoch-10.pth` or `step-1200.pth`, is saved as well.
        keep_last: How many of those are kept, the newest ones; None: all.
        save_weights_only: Whether all but `latest.pth` hold only weights and configuration.
        save_on_exception: Whether a failing run leaves a `crash.pth`; it may be between two states.
        on_save_error: Whether a save that fails ends the run, or is a warning until the run ends.
        asynchronous: Whether files are written in a thread while training goes on. Off by default:
            the copy takes memory, and a small model is written faster than handed over.
        name: Sets a second one apart.

    Raises:
        CallbackError: An argument cannot be meant.

    Example:
        >>> checkpoint = ModelCheckpoint(every="500 steps", keep_every="10 epochs", keep_last=3)
        >>> auc = ModelCheckpoint(name="auc", monitor="val/auc", mode="max")
    """

    name = _FIRST
    priority = Priority.LOWEST  # what it saves includes what all others did

    def __init__(
        self,
        every: str | Every | None = "1 epoch",
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        save_top_k: int = 1,
        keep_every: str | Every | None = None,
        keep_last: int | None = None,
        save_weights_only: bool = False,
        save_on_exception: bool = False,
        on_save_error: Literal["raise", "warn"] = "raise",
        asynchronous: bool = False,
        name: str = _FIRST,
    ) -> None:
        super().__init__(monitor, mode)
        if save_top_k < 0 or (keep_last is not None and keep_last < 1):
            raise CallbackError(
                f"ModelCheckpoint(save_top_k={save_top_k}, keep_last={keep_last}): "
                "save_top_k is 0 or more, keep_last 1 or more"
            )
        if on_save_error not in ("raise", "warn"):
            raise CallbackError(
                f"ModelCheckpoint(on_save_error={on_save_error!r}): 'raise' or 'warn'"
            )
        self.name = name
        self.every = None if every is None else Every(every)
        self.keep_every = None if keep_every is None else Every(keep_every)
        self.keep_last = keep_last
        self.save_top_k = save_top_k
        self.save_weights_only = save_weights_only
        self.save_on_exception = save_on_exception
        self.on_save_error = on_save_error
        self.asynchronous = asynchronous
        self.best_score: float | None = None
        self.failures = 0
        self._last = self._last_kept = Moment()
        self._judged: tuple[int, int] | None = None  # epoch and step of the result judged last
        self._saved: tuple[int, int, int] | None = None
        self._mode = "min"
        self._writer: AsyncWriter[Path] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this one owns `latest.pth` and the numbered files."""
        return self.name == _FIRST

    def on_train_start(self, runner: Runner) -> None:
        """Find out now that the directory cannot be written, and not at the first save."""
        self._mode = runner.config.monitor_mode
        if self.is_first and runner.has_dir:
            runner.world.on_main(runner.checkpoints.preflight)
        if self.asynchronous:
            from danling.writer import AsyncWriter

            self._writer = AsyncWriter()

    def on_checkpoint(self, runner: Runner) -> None:
        """Save what is due at this safe point."""
        self._deliver(runner)
        if runner.has_dir and (names := self._due(runner)):
            self._save(runner, list(dict.fromkeys(names)))

    def _due(self, runner: Runner) -> list[str]:
        now, improved = runner.now(), self._has_improved(runner)
        names: list[str] = []
        if self.is_first:
            position = (runner.epoch, runner.global_step, runner.batch_index)
            due = self.every is not None and self.every.is_due(now, self._last)
            if due or (runner.is_ending and position != self._saved):
                names.append("latest")
                self._last, self._saved = now, position
            if self.keep_every is not None and self.keep_every.is_due(now, self._last_kept):
                names.append(numbered(runner, self.keep_every))
                self._last_kept = now
        if improved and self.save_top_k:
            names.append("best" if self.is_first else f"best-{self.name}")
            if self.is_first and self.save_top_k > 1:
                names.append(numbered(runner, self.keep_every))
        return names

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Keep what there is, where that was asked for, if no other process is needed for it."""
        if not (self.save_on_exception and self.is_first and runner.has_dir):
            return
        if runner.distributed or isinstance(error, CheckpointError):
            return
        Save.of(runner, ["crash"], runner.state_dict()).commit(runner.checkpoints)

    def on_train_end(self, runner: Runner) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._guard(runner, self._drain)
            self._deliver(runner)
        if self.failures:
            raise CheckpointError(f"{self.failures} saves failed in this run: see its log")

    def _drain(self, runner: Runner) -> None:
        if self._writer is not None:
            self._writer.drain()

    def on_teardown(self, runner: Runner) -> None:
        """Let no thread outlive the run."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.drain()

    def state_dict(self) -> dict[str, Any]:
        """The best score, and when was saved last."""
        return {
            "best_score": self.best_score,
            "judged": self._judged,
            "last": astuple(self._last),
            "last_kept": astuple(self._last_kept),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best_score = state["best_score"]
        self._judged = None if state["judged"] is None else tuple(state["judged"])
        self._last, self._last_kept = Moment(*state["last"]), Moment(*state["last_kept"])

    def _has_improved(self, runner: Runner) -> bool:
        """Whether there is a result that was not judged yet, and it is the best."""
        result = runner.latest_result
        if result is None or self._judged == (result["epoch"], result["global_step"]):
            return False
        self._judged = (result["epoch"], result["global_step"])
        if self.monitor is None:
            return runner.is_best
        monitor, mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        score = self.score(monitor, result)
        if not self.is_better(score, self.best_score, mode):
            return False
        self.best_score = score
        return True

    def _save(self, runner: Runner, names: list[str]) -> None:
        checkpoint = runner.state_dict()  # all processes take part, the main one writes
        saves = [Save.of(runner, names, checkpoint)]
        if self.save_weights_only:
            weights = {key: checkpoint[key] for key in ("model", "config", "run")}
            saves = [
                Save.of(runner, [name], checkpoint if name == "latest" else weights)
                for name in names
            ]
        for save in saves:
            self._guard(runner, self._save_now if self._writer is None else self._submit, save)

    def _save_now(self, runner: Runner, save: Save) -> None:
        path = runner.world.on_main(partial(self._commit, runner.checkpoints, save))
        runner.callbacks("on_save", runner, path)

    def _submit(self, runner: Runner, save: Save) -> None:
        from danling.snapshot import snapshot

        if self._writer is not None and runner.is_main_process:
            save = replace(save, contents=snapshot(save.contents))
            self._writer.submit(partial(self._commit, runner.checkpoints, save))

    def _deliver(self, runner: Runner) -> None:
        """Tell of the saves that ended in the background, here where hooks may run."""
        if self._writer is None:
            return
        self._guard(runner, self._check)
        for path in self._writer.completed():
            runner.callbacks("on_save", runner, path)

    def _check(self, runner: Runner) -> None:
        if self._writer is not None:
            self._writer.check()

    def _guard(self, runner: Runner, action: Callable[..., None], *args: Any) -> None:
        """Do something that may fail to save; a failure ends the run, or is counted."""
        try:
            action(runner, *args)
        except CheckpointError as error:
            if self.on_save_error == "raise":
                raise
            self.failures += 1
            if self._writer is None:  # of one in the background only the main process knows
                self._saved = None
            runner.logger.warning("save failed (%d so far): %s", self.failures, error)

    def _commit(self, store: CheckpointStore, save: Save) -> Path:
        path = save.commit(store)
        if self.is_first and (self.keep_last is not None or self.save_top_k > 1):
            store.rotate(self._kept(store.candidates()))
        return path

    def _kept(self, entries: list[Entry]) -> set[str]:
        """The numbered files that stay: the newest of the regular ones, and the best."""
        entries = [entry for entry in entries if is_numbered(entry.name)]
        regular = [entry for entry in entries if self.keep_every is not None]
        kept = {entry.name for entry in regular[: self.keep_last]}
        if self.save_top_k > 1:
            scored = [entry for entry in entries if entry.trailer.metrics]
            scored.sort(
                key=lambda entry: next(iter(entry.trailer.metrics.values())),
                reverse=self._mode == "max",
            )
            kept |= {entry.name for entry in scored[: self.save_top_k]}
        return kept


@dataclass(frozen=True)
class Save:
    """One file to write: under which names, what is in it, and of when it is."""

    names: list[str]
    contents: Any
    global_step: int
    epoch: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, runner: Runner, names: list[str], contents: Any) -> Save:
        """A save of this point of a run."""
        return cls(names, contents, runner.global_step, runner.epoch, runner.score_metrics())

    def commit(self, store: CheckpointStore) -> Path:
        """Write it."""
        return store.commit(
            self.contents,
            self.names,
            global_step=self.global_step,
            epoch=self.epoch,
            metrics=self.metrics,
        )


def numbered(runner: Runner, period: Every | None) -> str:
    """The name of a file that is of one epoch or one step."""
    by_step = runner.batch_index > 0 or (period is not None and period.unit == "steps")
    return f"step-{runner.global_step}" if by_step else f"epoch-{runner.epoch}"
