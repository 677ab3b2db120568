"""When a checkpoint is saved, and which ones are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danling.callback import Priority
from danling.callbacks.monitor import Monitor
from danling.checkpoint.catalog import is_name, series_of
from danling.checkpoint.retention import REGULAR, SCORE, Ranking, kept
from danling.checkpoint.saving import Saver
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CallbackError, CheckpointError
from danling.metrics.history import flatten
from danling.triggers import Every, Moment

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["ModelCheckpoint"]

_FIRST = "model_checkpoint"


class ModelCheckpoint(Monitor):
    """Save the run: `latest.pth` to go on from, `best.pth` to use, numbered files to keep.

    A run that dies goes on from `latest.pth`. `best.pth` is written at each evaluation that
    improves. Further ones, each with a `name`, follow other values: they write `best-{name}.pth`,
    and numbered files of their own, as `{name}-epoch-10.pth`.

    Args:
        every: The time from one save of `latest.pth` to the next; it is saved at the end as well,
            and with None only there.
        monitor: The value that `best.pth` follows, as `"val/accuracy"`; None: the monitor of the
            run.
        mode: Whether lower (`"min"`) or higher (`"max"`) is better.
        save_top_k: The number of the best that are kept: 1 is `best.pth`, 0 none, more are numbered
            files besides; -1 keeps every evaluation's.
        keep_every: The time from one numbered file, `epoch-10.pth` or `step-1200.pth`, to the next;
            None: there are none.
        keep_last: The number of those that are kept, the newest ones; None: all.
        save_weights_only: Whether all but `latest.pth` hold only weights and configuration.
        save_on_exception: Whether a failing run leaves `crash/step-N.pth`. It may be of the middle
            of a step: no run goes on from it by itself. Of several processes the main one writes
            it, with what it has of its own: not where each holds a part of the weights.
        on_save_error: Whether a save that fails ends the run, or is a warning until the run ends.
        asynchronous: Whether files are written in a thread while training goes on. For 256 MB
            training then stands still for 0.5 times `torch.save` alone instead of 2.8 times, 0.1
            instead of 0.7 s (`tests/benchmarks/bench_save.py`). Off by default: that is little in
            an epoch, and in return a save that is due is on the disk when training goes on, its
            error comes at its own step, and no copy is held in memory.
        name: The name that sets a second one, and its files, apart.

    Raises:
        CallbackError: An argument cannot be meant.

    Example:
        >>> checkpoint = ModelCheckpoint(every="500 steps", keep_every="10 epochs", keep_last=3)
        >>> auc = ModelCheckpoint(name="auc", monitor="val/auc", mode="max", save_top_k=3)
    """

    name = _FIRST
    priority = Priority.LOWEST  # what it saves includes what all others did
    only_watches = True
    _judged: tuple[int, int] | None  # epoch and step of the result judged last
    _saved: tuple[int, int, int] | None  # position of the run in `latest`
    _evaluations: int  # of the run when it was last looked

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
        self.name = name
        self.every = None if every is None else Every(every)
        self.keep_every = None if keep_every is None else Every(keep_every)
        self.keep_last = keep_last
        self.save_top_k = save_top_k
        self.save_weights_only = save_weights_only
        self.save_on_exception = save_on_exception
        self.on_save_error = on_save_error
        self.asynchronous = asynchronous
        self._by_step = any(each.unit != "epochs" for each in (self.every, self.keep_every) if each)
        self._check()
        self._saver = Saver(World(), on_save_error)
        self._forget()

    @property
    def is_first(self) -> bool:
        """Whether this one owns `latest.pth`, `best.pth` and the numbered files without a name."""
        return self.name == _FIRST

    @property
    def best_score(self) -> float | None:
        """The best score so far."""
        return self._ranking.best

    def on_setup(self, runner: Runner) -> None:
        """Start anew, unless the runner goes on with a training of before."""
        if runner.global_step == 0:
            self._forget()

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Find the best scores in the results that there are now."""
        results, self._saved = runner.results, position(runner)
        # one that was not judged when it came has no weights to save any more
        self._judged = key_of(results[-1]) if results else None
        monitor, mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        self._ranking = Ranking(self._top, mode)
        for result in results:
            self._ranking.add(flatten(result).get(monitor))

    def on_train_start(self, runner: Runner) -> None:
        """Find out now that the directory cannot be written, and not at the first save."""
        _, self._ranking.mode = self.resolve(runner.monitor, runner.config.monitor_mode)
        if self.is_first and runner.has_dir:
            runner.world.on_main(partial(preflight, runner))
        self._saver = Saver(runner.world, self.on_save_error, runner.logger)
        self._saver.open(asynchronous=self.asynchronous)

    def on_checkpoint(self, runner: Runner) -> None:
        """Save what is due at this safe point."""
        if self._saver.is_asynchronous and (
            not runner.distributed or runner.global_step % runner.config.poll_interval == 0
        ):
            self._deliver(runner)
        is_news = runner.epoch_complete or runner.evaluations != self._evaluations
        self._evaluations = runner.evaluations
        look = is_news or runner.is_ending or self._by_step  # few steps have anything to save
        if look and runner.has_dir and (names := self._due(runner)):
            self._save(runner, names)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Keep what there is, if it was asked for."""
        if not runner.has_dir or not runner.is_main_process:
            return
        if not runner.distributed:  # else the others would have to take part
            self._deliver(runner, wait=True)
        if self.save_on_exception and not isinstance(error, CheckpointError):
            save_failure(runner, error)

    def on_train_end(self, runner: Runner) -> None:
        """Wait for what is being written."""
        self._deliver(runner, wait=True)
        if self._saver.failures:
            raise CheckpointError(f"{self._saver.failures} saves failed in this run: see its log")

    def on_teardown(self, runner: Runner) -> None:
        """Let no thread outlive the run."""
        self._saver.close()

    def state_dict(self) -> dict[str, Any]:
        """When was saved last."""
        return {"last": astuple(self._last), "last_kept": astuple(self._last_kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the scores are in the results."""
        self._last, self._last_kept = Moment(*state["last"]), Moment(*state["last_kept"])

    @property
    def _series(self) -> str:
        """What the names of its numbered files begin with."""
        return "" if self.is_first else f"{self.name}-"

    @property
    def _top(self) -> int | None:
        """The number of the best that are kept; None: all."""
        return None if self.save_top_k == -1 else self.save_top_k

    # When

    def _due(self, runner: Runner) -> dict[str, dict[str, float]]:
        """The names to save under, each with the reasons to keep it."""
        now, judged = runner.now(), self._judge(runner)
        names: dict[str, dict[str, float]] = {}
        if self.is_first:
            due = self.every is not None and self.every.is_due(now, self._last)
            if due or (runner.is_ending and position(runner) != self._saved):
                names["latest"] = {}
                self._last, self._saved = now, position(runner)
        if self.keep_every is not None and self.keep_every.is_due(now, self._last_kept):
            names[self._series + number(runner, self.keep_every)] = {REGULAR: 1.0}
            self._last_kept = now
        if judged is None or not self.save_top_k:
            return names
        score, place = judged
        if place == 0:
            names["best" if self.is_first else f"best-{self.name}"] = {}
        if self.save_top_k != 1:
            name = self._series + number(runner, self.keep_every)
            names.setdefault(name, {})[SCORE] = score
        return names

    def _judge(self, runner: Runner) -> tuple[float, int] | None:
        """Score and place of a result that was not judged yet, where it is among the best."""
        result = runner.latest_result
        if result is None or self._judged == key_of(result):
            return None
        monitor, _ = self.resolve(runner.monitor, runner.config.monitor_mode)
        if monitor.startswith("train/") and not runner.epoch_complete:
            return None
        self._judged = key_of(result)
        if self.monitor is not None and self.best_score is None:
            self.score(monitor, result)  # says so where the value does not exist
        score = flatten(result).get(monitor)
        place = self._ranking.add(score)
        return None if score is None or place is None else (score, place)

    # How

    def _save(self, runner: Runner, names: dict[str, dict[str, float]]) -> None:
        checkpoint = runner.state_dict()  # all processes take part, the main one writes
        groups = [(tuple(names), checkpoint)]
        if self.save_weights_only:
            weights = {key: checkpoint[key] for key in ("model", "config", "run")}
            if members := checkpoint.get("stateful"):
                weights["stateful"] = members
            groups = [((name,), checkpoint if name == "latest" else weights) for name in names]
        for group, contents in groups:
            reasons = {key: value for name in group for key, value in names[name].items()}
            self._deliver(runner, wait=True)
            save = runner.make_save(group, contents, reasons)
            failures = self._saver.failures
            self._announce(runner, self._saver.save(save, runner.checkpoints, self._tidy(runner)))
            if self._saver.failures > failures:
                self._saved = None

    def _tidy(self, runner: Runner) -> Callable[[], object] | None:
        """What removes the numbered files that are not kept, where some are not."""
        if self.keep_last is None and self.save_top_k <= 1:
            return None
        return partial(self._rotate, runner.checkpoints)

    def _rotate(self, store: CheckpointStore) -> None:
        series, mode = self._series.removesuffix("-"), self._ranking.mode
        entries, last = store.candidates(), self.keep_last
        store.rotate(kept(entries, last=last, best=self._top, mode=mode, series=series))

    def _deliver(self, runner: Runner, *, wait: bool = False) -> None:
        """Tell of the saves that ended in the background, here where hooks may run."""
        failures = self._saver.failures
        self._announce(runner, self._saver.deliver(wait=wait))
        if self._saver.failures > failures:
            self._saved = None

    @staticmethod
    def _announce(runner: Runner, paths: list[Path]) -> None:
        for path in paths:
            runner.callbacks("on_save", runner, path)

    # The rest

    def _forget(self) -> None:
        self._evaluations = -1
        self._last = self._last_kept = Moment()
        self._judged, self._saved = None, (0, 0, 0)
        self._ranking = Ranking(self._top)

    def _check(self) -> None:
        arguments = f"ModelCheckpoint(save_top_k={self.save_top_k}, keep_last={self.keep_last})"
        if self.save_top_k < -1 or (self.keep_last is not None and self.keep_last < 1):
            raise CallbackError(
                f"{arguments}: save_top_k is -1 for all, or 0 or more, keep_last 1 or more"
            )
        if self.keep_last is not None and self.keep_every is None:
            raise CallbackError(f"{arguments}: keep_last is of the files of keep_every: set it too")
        if self.on_save_error not in ("raise", "warn"):
            raise CallbackError(
                f"ModelCheckpoint(on_save_error={self.on_save_error!r}): 'raise' or 'warn'"
            )
        if self.is_first:
            return
        if not is_name(f"best-{self.name}") or series_of(f"{self.name}-epoch-1") != self.name:
            raise CallbackError(
                f"ModelCheckpoint(name={self.name!r}): it names a file: letters, digits, "
                "and after the first also . _ = -; not best, latest or previous"
            )
        if self.save_on_exception:
            raise CallbackError(
                f"ModelCheckpoint(name={self.name!r}): save_on_exception is for the one without a "
                "name"
            )


def number(runner: Runner, period: Every | None) -> str:
    """The name of a file that is of one epoch or one step."""
    by_step = runner.batch_index > 0 or (period is not None and period.unit == "steps")
    return f"step-{runner.global_step}" if by_step else f"epoch-{runner.epoch}"


def preflight(runner: Runner) -> None:
    """Fail now where the first save would; the weights tell how much space it takes at least."""
    store, model = runner.checkpoints, runner.unwrapped_model
    is_first = not store.directory.is_dir() or store.is_empty()
    weights = model.state_dict().values() if model is not None and is_first else ()
    store.preflight(sum(getattr(weight, "nbytes", 0) for weight in weights) or None)


def save_failure(runner: Runner, error: BaseException) -> None:
    """Keep what this process has when a run fails; a warning where that is not possible."""
    name = f"step-{runner.global_step}"
    try:
        contents = runner.state_dict(alone=True)
        contents["run"]["crash"] = f"{type(error).__name__}: {error}"
        store = CheckpointStore(runner.dir / "crash", run=str(runner.uuid))
        runner.make_save((name,), contents).commit(World(), store)
    except CheckpointError as failure:
        runner.logger.warning("no crash/%s.pth is written: %s", name, failure)


def position(runner: Runner) -> tuple[int, int, int]:
    """The epoch, the step and the batch at which a run is."""
    return runner.epoch, runner.global_step, runner.batch_index


def key_of(result: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch and the step of a result."""
    return result["epoch"], result["global_step"]
