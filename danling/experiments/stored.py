"""The files of a run on the disk, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from danling.errors import CheckpointError, ConfigError, MetricError, RunDirectoryError
from danling.errors import did_you_mean as nearest
from danling.experiments.marks import Marks, Note, add_note, change_tags, read_marks
from danling.experiments.reading import (
    PassedOver,
    read_json,
    read_record,
    read_settings,
    with_numbers,
)
from danling.files.json import dotted
from danling.run.directory import RunPaths
from danling.run.metrics_file import read_metrics
from danling.run.search import FoundRun

if TYPE_CHECKING:
    from danling.config import Config

__all__ = ["FAILED", "CheckpointFile", "History", "StoredRun"]


_TAIL = 1 << 16  # bytes from the end of a log, for its last lines
_COUNTERS = ("global_step", "epoch", "time")
_NAMES = RunPaths("")  # joined as text: of thousands of runs a Path takes longer than the file
FAILED = ("failed", "killed")
"""Statuses of runs that ended before their time."""


class History(NamedTuple):
    """The points of a curve, in the order in which they were logged."""

    steps: list[int]
    """Optimizer steps."""
    values: list[float]
    times: list[float]
    """Seconds since the epoch of Unix."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint of a run, as its file describes itself."""

    name: str
    path: Path
    size: int
    """Bytes of the file and its shards."""
    epoch: int | None = None
    """Epochs completed; None in a file that says nothing, as the counters below."""
    global_step: int | None = None
    sha256: str | None = None
    metrics: Mapping[str, float] | None = None
    shards: str | None = None
    """The directory with the shards, if there are any."""


class StoredRun:
    """The files of a run.

    Files are read when they are asked for, and once: `danling.runs` reads anew. What a damaged file
    would have said is None or empty; `danling verify` says what is damaged.

    Args:
        path: The directory of the run.
        record: The content of its run.json, where that was read before.

    Raises:
        RunDirectoryError: The directory is none of a run.
    """

    def __init__(
        self, path: str | os.PathLike[str], record: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        if record is None:
            read = read_record(self.path)
            if isinstance(read, PassedOver):
                raise RunDirectoryError(f"{self.path} is no run: {read.reason}")
            record = read
        self.record = record
        """The content of run.json."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.name} {self.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredRun) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    # Who

    @property
    def id(self) -> str:
        """The short id, `{experiment_id:.8}-{run_id:.8}-{uuid:.8}`."""
        return f"{self.experiment_id:.8}-{self.run_id:.8}-{self.uuid:.8}"

    @property
    def uuid(self) -> str:
        """The id of this run alone, as 32 hexadecimal digits."""
        return str(self.record["uuid"]).replace("-", "")

    @property
    def run_id(self) -> str:
        """The id of code and configuration."""
        return str(self.record["run_id"])

    @property
    def experiment_id(self) -> str:
        """The id of the code."""
        return self._text("experiment_id") or ""

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def tags(self) -> tuple[str, ...]:
        return self._marks.tags

    @property
    def notes(self) -> tuple[Note, ...]:
        return self._marks.notes

    @cached_property
    def _marks(self) -> Marks:
        return read_marks(self.path)

    def tag(self, *add: str, remove: Sequence[str] = ()) -> None:
        """Add tags, and remove others.

        Raises:
            ConfigError: A text is no tag.
            RunDirectoryError: The tags cannot be written.
        """
        self.__dict__["_marks"] = change_tags(self.path, add, remove)

    def note(self, text: str) -> None:
        """Add a remark.

        Raises:
            RunDirectoryError: The remark cannot be written.
        """
        self.__dict__["_marks"] = add_note(self.path, text)

    # How it stands

    @cached_property
    def status(self) -> str:
        """running, finished, stopped, failed, preempted, interrupted, or killed.

        A run is running only while a process holds its lock; one that says so without is killed.
        """
        try:
            return FoundRun(self.path, self.record).status
        except OSError:  # the lock cannot be asked
            return str(self.record["status"])

    @property
    def is_running(self) -> bool:
        """Whether a process works on it now."""
        try:
            return FoundRun(self.path, self.record).locked
        except OSError:
            return bool(self.record["status"] == "running")

    @property
    def has_ended_well(self) -> bool:
        """Whether nothing is left to do; of a run that was stopped for want of time there is."""
        done = self.status in ("finished", "stopped")
        return done and not FoundRun(self.path, self.record).unfinished

    @property
    def reason(self) -> str | None:
        """Why it ended; of a failure the last line of its traceback."""
        return self._text("reason")

    @property
    def created(self) -> datetime | None:
        return self._time("created")

    @property
    def started(self) -> datetime | None:
        return self._time("started")

    @property
    def ended(self) -> datetime | None:
        return self._time("ended")

    @property
    def age(self) -> float | None:
        """Seconds since it was created."""
        created = self.created
        return None if created is None else (datetime.now(UTC) - created).total_seconds()

    @property
    def duration(self) -> float | None:
        """Seconds that its launches took together; of one that was killed, to its last sign."""
        spans = [self._span(launch) for launch in self.launches]
        known = [span for span in spans if span is not None]
        return sum(known) if known else None

    def _span(self, launch: Mapping[str, Any]) -> float | None:
        start, end = _moment(launch.get("start_time")), _moment(launch.get("end_time"))
        if start is None:
            return None
        if end is None and launch is self.launches[-1]:
            end = datetime.now(UTC) if self.status == "running" else self._last_sign()
        return max((end - start).total_seconds(), 0.0) if end else None

    def _last_sign(self) -> datetime | None:
        """The time of the last write of a run that could not record its end."""
        moments = []
        for path in (self.paths.log, self.paths.metrics, self.paths.run_json):
            with suppress(OSError):
                moments.append(path.stat().st_mtime)
        return datetime.fromtimestamp(max(moments), UTC) if moments else None

    @property
    def launches(self) -> list[Mapping[str, Any]]:
        """The processes that worked on it, the first one first."""
        launches = self.record.get("launches")
        found = launches if isinstance(launches, list) else []
        return [launch for launch in found if isinstance(launch, dict)]

    # What it ran

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The keys of the configuration that make `run_id`, dotted."""
        return dotted(_mapping(self.record.get("hash_inputs")))

    @cached_property
    def config(self) -> Config:
        """The whole configuration, as runner.yaml has it; what run.json has where that is damaged.

        Raises:
            ConfigError: Neither file has a configuration.
        """
        from danling.config import Config

        try:
            return Config.load(self.paths.runner_yaml)
        except (ConfigError, OSError):
            recorded = _mapping(self.record.get("hash_inputs"))
            if not recorded:
                raise
            return Config(recorded)

    @cached_property
    def all_settings(self) -> dict[str, Any]:
        """The keys of the configuration, dotted, with their values."""
        try:
            return dotted(read_settings(self.paths.runner_yaml)) | self._given
        except (ConfigError, OSError):
            return dict(self.settings)

    @property
    def _given(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings.items() if value is not None}

    @property
    def seed(self) -> int | None:
        """The seed, one that was drawn included."""
        seed = self.settings.get("seed")
        if seed is None and "seed" not in self._given:
            seed = self.all_settings.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def code(self) -> Mapping[str, Any]:
        """The record of the code: commit, branch, tree, dirty and so on."""
        return _mapping(self.record.get("code"))

    @property
    def commit(self) -> str | None:
        """The git commit."""
        commit = self.code.get("commit")
        return commit if isinstance(commit, str) else None

    @property
    def dirty(self) -> bool:
        """Whether the code differed from the commit."""
        return bool(self.code.get("dirty"))

    @cached_property
    def patch(self) -> str:
        """The uncommitted code as a patch; empty where there was none."""
        try:
            return self.paths.code_patch.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def environment(self) -> Mapping[str, Any]:
        """The machine, the versions and the variables."""
        return _mapping(self.record.get("environment"))

    @cached_property
    def packages(self) -> dict[str, str]:
        """The installed packages with their versions."""
        try:
            return {str(k): str(v) for k, v in _mapping(read_json(self.paths.packages)).items()}
        except (OSError, ValueError):
            return {}

    # What came out

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """The results of the epochs."""
        try:
            results = with_numbers(read_json(self.paths.results))
        except (OSError, ValueError):
            return []
        found = results if isinstance(results, list) else []
        return [result for result in found if isinstance(result, dict)]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The best result, by the run's own monitor."""
        return self._result(_NAMES.best)

    @cached_property
    def latest(self) -> dict[str, Any] | None:
        """The latest result."""
        return self._result(_NAMES.latest)

    def _result(self, name: Path) -> dict[str, Any] | None:
        try:
            result = with_numbers(read_json(os.path.join(self.path, name)))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    @property
    def monitor(self) -> str:
        """The result that tells the best one, as `split.metric`."""
        monitor = self.settings.get("monitor")
        if isinstance(monitor, str):
            return monitor.replace("/", ".", 1)
        best = self.best
        return "train.loss" if best is not None and "val" not in best else "val.loss"

    @property
    def monitor_mode(self) -> str:
        """Whether a lower (`"min"`) or a higher (`"max"`) score is better."""
        return "max" if self.settings.get("monitor_mode") == "max" else "min"

    @property
    def score(self) -> float | None:
        """The monitored value of the best result."""
        return self.metric(self.monitor)

    def metric(self, name: str) -> float | None:
        """A value of the best result, such as `val.loss`; None where there is none."""
        value: Any = self.best
        for part in name.replace("/", ".").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    @cached_property
    def _curves(self) -> dict[str, History]:
        curves: dict[str, History] = {}
        with suppress(OSError):
            for row in read_metrics(self.paths.metrics):
                _add_row(curves, row)
        return curves

    @property
    def metric_names(self) -> list[str]:
        """The names of the metrics that have a history, as `split/metric`."""
        return list(self._curves)

    def history(self, tag: str) -> History:
        """The steps, values and times of what was logged under a tag.

        Args:
            tag: The tag, such as `val/loss` or `val.loss`.

        Raises:
            MetricError: Nothing was logged under this tag.
        """
        curves = self._curves
        if tag in curves:
            return curves[tag]
        wanted = tag.replace("/", ".")
        for name, history in curves.items():
            if name.replace("/", ".") == wanted:
                return history
        raise MetricError(f"{self.id} has no curve {tag!r}: {nearest(tag, curves)}")

    @property
    def checkpoints(self) -> list[CheckpointFile]:
        """The checkpoints, the newest first."""
        found = [_checkpoint(path) for path in sorted(self._checkpoint_dir.glob("*.pth"))]
        return sorted(found, key=lambda file: -(file.global_step or 0))

    def checkpoint(self, name: str = "best") -> Path:
        """The file of a checkpoint.

        Raises:
            CheckpointError: There is none of this name.
        """
        path = self._checkpoint_dir / f"{name.removesuffix('.pth')}.pth"
        if not path.is_file():
            names = [file.name for file in self.checkpoints]
            raise CheckpointError(f"{self.id} has no checkpoint {name!r}: {nearest(name, names)}")
        return path

    @property
    def _checkpoint_dir(self) -> Path:
        name = self.all_settings.get("checkpoint_dir_name")
        # a name, and never a way out of the directory
        valid = isinstance(name, str) and Path(name).name == name
        return self.path / (name if valid and isinstance(name, str) else "checkpoints")

    def log(self, tail: int = 20) -> list[str]:
        """The last lines of run.log."""
        try:
            with open(self.paths.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                return file.read().decode("utf-8", "replace").splitlines()[-tail:] if tail else []
        except OSError:
            return []

    @property
    def size(self) -> int:
        """Bytes on the disk; a file with two names counts once."""
        seen: dict[tuple[int, int], int] = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                with suppress(OSError):
                    status = os.lstat(os.path.join(folder, name))
                    seen[status.st_dev, status.st_ino] = status.st_size
        return sum(seen.values())

    @property
    def paths(self) -> RunPaths:
        """The paths of its files."""
        return RunPaths(self.path)

    def _text(self, key: str) -> str | None:
        value = self.record.get(key)
        return value if isinstance(value, str) else None

    def _time(self, key: str) -> datetime | None:
        return _moment(self.record.get(key))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _add_row(curves: dict[str, History], row: Mapping[str, Any]) -> None:
    step, moment = row.get("global_step"), row.get("time")
    if not isinstance(step, int):
        return
    for tag, value in with_numbers(row).items():
        if tag not in _COUNTERS and isinstance(value, int | float):
            history = curves.setdefault(tag, History([], [], []))
            history.steps.append(step)
            history.values.append(float(value))
            history.times.append(moment if isinstance(moment, int | float) else 0.0)


def _checkpoint(path: Path) -> CheckpointFile:
    from danling.checkpoint.trailer import read_trailer

    size = 0
    with suppress(OSError, ValueError, TypeError, KeyError):
        size = path.stat().st_size
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            trailer = read_trailer(file)[0]
        if trailer is not None:
            return CheckpointFile(
                path.stem,
                path,
                size + trailer.shards_size,
                trailer.epoch,
                trailer.global_step,
                trailer.sha256,
                trailer.metrics,
                trailer.shards,
            )
    return CheckpointFile(path.stem, path, size)
