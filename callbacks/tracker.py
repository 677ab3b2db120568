"""The run on the page of another tracker."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from danling.callback import Callback
from danling.files.atomic import write_json
from danling.identity.redaction import mask_values
from danling.logs import Attempts
from danling.run.metrics_file import read_metrics
from danling.tensorboard import media
from danling.tensorboard.hparams import table_values
from danling.trackers import KINDS, Identity, check_kind, show_image, start_tracker

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker
    from tensorboard.compat.proto.summary_pb2 import Summary

    from danling.runner.base import BaseRunner as Runner

__all__ = ["Tracker"]

_MAX_ROWS: Final = 10_000
_FIRST_DELAY: Final = 5.0
_LONGEST_DELAY: Final = 600.0
_MAX_TRIES: Final = 3  # of one row: a value that the tracker refuses must not hold up the others


class Tracker(Callback):
    """Show the run on Weights & Biases, MLflow, Aim, Comet, ClearML, DVCLive, SwanLab or Trackio.

    The tracker is Accelerate's. It gets the configuration under dotted keys, every value that is
    logged, the best score, and how the run ended; a resumed run goes on as the same run there.
    Several may be attached: `Tracker("wandb"), Tracker("mlflow")` are `tracker_wandb` and
    `tracker_mlflow`.

    An outage never ends a training: it is one warning, values wait in memory (up to 10,000 rows)
    and are sent when the tracker answers again, which is tried after 5 seconds, then 10, up to
    every 10 minutes. `metrics.jsonl` has them all the same.

    `runner.log_image` and `runner.log_figure` show pictures there; in an outage they are left out.

    A run that is resumed goes on after the last point that the tracker has of it: no point is
    there twice, and those that a killed process could not hand over are sent from `metrics.jsonl`.
    All of them can tell what they have while it is on this machine; what is on a server of Weights
    & Biases, Comet, ClearML or SwanLab, or in a space of Trackio, they cannot: a warning before the
    training says that points may be missing or be there twice. What a resumed run has abandoned
    cannot be taken back from any of them.

    Args:
        tracker: The name of the tracker, `"wandb"`, `"mlflow"`, `"aim"`, `"comet_ml"`, `"clearml"`,
            `"dvclive"`, `"swanlab"` or `"trackio"`; or a `GeneralTracker` of Accelerate's.
        project: The name of the group of runs; None for the `experiment_name` of the configuration.
        options: The arguments of Accelerate's tracker, as `{"entity": "team"}` for wandb.
        strict: Whether a failure of the tracker ends the training.

    Raises:
        CallbackError: There is no such tracker, or its package is not installed.

    Example:
        >>> runner.callbacks.append(Tracker("wandb", options={"mode": "offline"}))  # doctest: +SKIP
    """

    name = "tracker"
    only_watches = True

    def __init__(
        self,
        tracker: str | GeneralTracker,
        *,
        project: str | None = None,
        options: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> None:
        if isinstance(tracker, str):
            check_kind(tracker)
        self.kind = tracker if isinstance(tracker, str) else tracker.name
        self.name = f"tracker_{self.kind}"
        self.own = None if isinstance(tracker, str) else tracker
        self.project = project
        self.options = dict(options or {})
        self.strict = strict
        self._forget()

    def _forget(self) -> None:
        self._attempts = Attempts(self.name, strict=self.strict)
        self._tracker: Any = None
        self._is_active = False
        self._rows: deque[tuple[int, dict[str, float]]] = deque(maxlen=_MAX_ROWS)
        self._tries = self._lost = 0
        self._delay = _FIRST_DELAY
        self._retry_at = 0.0
        self._has_told = False
        self._told: float | None = None  # the best score that the tracker got
        self._last_steps: dict[str, int] = {}  # that the tracker has of a run that goes on

    def on_setup(self, runner: Runner) -> None:
        """Forget another run; the tracker starts when it is known whether this one goes on."""
        self._forget()

    def on_train_start(self, runner: Runner) -> None:
        """Start the tracker, on the run that it had before where there was one."""
        self._is_active = runner.is_main_process and runner.has_dir
        self._send(runner)

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Hand the values on."""
        if self._is_active:
            self._lost += len(self._rows) == _MAX_ROWS  # the oldest makes room
            self._rows.append((runner.global_step, {"epoch": float(runner.epoch), **metrics}))
            if time.monotonic() >= self._retry_at:
                self._send(runner)

    def on_epoch_end(self, runner: Runner) -> None:
        """Hand on the best score where it is a new one, as `best/val/loss`."""
        self._tell_best(runner)

    def on_teardown(self, runner: Runner) -> None:
        """Hand on what is left, and say how the run ended."""
        if self._is_active:
            self._tell_best(runner)
            self._send(runner)
            with self._attempts.caught(runner.logger):
                self._end(runner.status or "failed")
            if lost := self._lost + len(self._rows):
                runner.logger.warning("%s did not get %d rows", self.name, lost)
        self._is_active, self._tracker = False, None
        self._attempts.report(runner.logger)

    def _tell_best(self, runner: Runner) -> None:
        best, result = runner.best_score, runner.best_result
        if best is not None and result is not None and best != self._told:
            self._told = best
            self.on_log(runner, {f"best/{runner.monitor}": best, "best/epoch": result["epoch"]})

    # What `runner.log_image` and the like call

    def log_image(self, runner: Runner, tag: str, image: Any) -> None:
        """Show an image, or a batch of them as a grid: see `danling.tensorboard.media.image`."""
        self._show(runner, tag, lambda: media.image(tag, image))

    def log_figure(self, runner: Runner, tag: str, figure: Any) -> None:
        """Show a figure of matplotlib; it stays open."""
        self._show(runner, tag, lambda: media.figure(tag, figure))

    def _show(self, runner: Runner, tag: str, make: Callable[[], Summary.Value]) -> None:
        if self._tracker is None or time.monotonic() < self._retry_at:
            return
        show = KINDS[self.kind].show if self.own is None else show_image
        if self.own is not None and not hasattr(self.own, "log_images"):
            if not self._has_told:
                runner.logger.warning("%s has no log_images and shows no pictures", self.name)
            self._has_told = True
            return
        with self._attempts.caught(runner.logger):
            show(self._tracker, tag, media.picture(make()), runner.global_step)

    def _send(self, runner: Runner) -> None:
        """Start the tracker if it is not, and hand on all rows; after a failure wait longer."""
        failures = self._attempts.failures
        with self._attempts.caught(runner.logger):
            if self._is_active and self._tracker is None:
                self._start(runner)
            while self._rows:
                self._tries += 1
                self._log(*self._rows[0])
                self._rows.popleft()
                self._tries = 0
        if self._attempts.failures == failures:
            self._delay = _FIRST_DELAY
            return
        self._retry_at = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        if self._tries == _MAX_TRIES:
            self._rows.popleft()
            self._tries, self._lost = 0, self._lost + 1

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        last = self._last_steps
        metrics = {tag: value for tag, value in metrics.items() if last.get(tag, -1) < step}
        if not metrics.keys() - {"epoch"}:
            return
        if self.kind == "wandb":  # drops rows whose step is not after its last one
            self._tracker.log({"global_step": step, **metrics})
        else:
            self._tracker.log(metrics, step=step)

    def _start(self, runner: Runner) -> None:
        listing = runner.paths.metadata / "trackers.json"
        known = _read(listing)
        identity = Identity(
            project=self.project or runner.config.experiment_name,
            name=f"{runner.name}-{runner.id}",
            uuid=runner.uuid.hex,
            directory=runner.dir,
            root=runner.dir.parent,
            known_id=known.get(self.kind),
        )
        if self.own is not None:
            self.own.start()
            self._tracker = self.own
        else:
            self._tracker = start_tracker(self.kind, identity, self.options)
            drawn = KINDS[self.kind].id_of(self._tracker)
            if self.kind in known:
                self._catch_up(runner, identity)
            else:
                listing.parent.mkdir(exist_ok=True)
                write_json(listing, known | {self.kind: drawn})
        if identity.known_id is None:  # MLflow takes no second value of a parameter
            values = table_values(mask_values(runner.config.to_dict()))
            self._tracker.store_init_configuration(values)

    def _catch_up(self, runner: Runner, identity: Identity) -> None:
        """Send what the tracker lacks of the run up to here, and later nothing that it has."""
        steps = KINDS[self.kind].last_steps(self._tracker, identity)
        if steps is None:
            runner.logger.warning(
                "%s cannot tell which points it has of this run: some may be missing or be there "
                "twice; metrics.jsonl has each once",
                self.name,
            )
            return
        self._last_steps = steps
        if runner.paths.metrics.exists():
            rows = [_sent(row) for row in read_metrics(runner.paths.metrics)]
            self._rows = deque([*rows, *self._rows], maxlen=_MAX_ROWS)

    def _end(self, status: str) -> None:
        if self.own is not None and self._tracker is not None:
            self.own.finish()
        elif self._tracker is not None:
            KINDS[self.kind].end(self._tracker, status)


def _sent(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """A row of metrics.jsonl as it is sent, in which NaN and infinities are numbers."""
    metrics = {tag: float(row[tag]) for tag in row if tag not in ("global_step", "time")}
    return row["global_step"], metrics


def _read(path: Path) -> dict[str, str | None]:
    if not path.exists():
        return {}
    known: dict[str, str | None] = json.loads(path.read_text(encoding="utf-8"))
    return known
