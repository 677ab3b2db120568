"""Disk space: runs to the trash and back, checkpoints that nobody needs any more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danling.errors import MetricError, RunDirectoryError
from danling.experiments.collection import Runs
from danling.experiments.reading import PassedOver, read_json, read_record
from danling.experiments.repeat.code import ignore_folder
from danling.experiments.run import Run
from danling.files.atomic import write_json
from danling.run.lock import DirectoryLock

__all__ = [
    "CheckpointPlan",
    "empty_trash",
    "in_trash",
    "move_to_trash",
    "parents",
    "plan_checkpoints",
    "protection",
    "restore",
]


TRASH = ".danling/trash"
"""The folder of removed runs, below the folder of the runs."""

_ENDED_WELL = ("finished", "stopped")


def parents(runs: Iterable[Run]) -> set[str]:
    """The uuids of runs from whose checkpoints others began."""
    found = set()
    for run in runs:
        for launch in run.launches:
            resumed = launch.get("resumed")
            uuid = resumed.get("run") if isinstance(resumed, dict) else None
            if isinstance(uuid, str) and uuid.replace("-", "") != run.uuid:
                found.add(uuid.replace("-", ""))
    return found


def protection(run: Run, runs: Runs) -> str | None:
    """Why a run is not removed; None where nothing speaks for it.

    Args:
        run: The run.
        runs: The runs of the folder, which tell whether it is the best, or another's parent.
    """
    if run.is_running:
        return "it is running"
    if run.tags:
        return f"it is tagged {', '.join(run.tags)} (danling tag {run.id} --remove ...)"
    if run.uuid in parents(runs):
        return "another run began from its checkpoint"
    if run in _best_runs(runs):
        return "it is the best"
    return None


def _best_runs(runs: Runs) -> list[Run]:
    """The best run of each monitor."""
    best = []
    for monitor, mode in {(run.monitor, run.monitor_mode) for run in runs if run.best}:
        own = Runs(run for run in runs if (run.monitor, run.monitor_mode) == (monitor, mode))
        with suppress(MetricError):
            best.append(own.best())
    return [run for run in best if run is not None]


def move_to_trash(run: Run, root: Path) -> Path:
    """Move a run to the trash of its folder, unless a process works on it.

    Raises:
        RunDirectoryError: It is in use, lies elsewhere, or cannot be moved.
    """
    if run.path.resolve().parent != root.resolve():
        raise RunDirectoryError(f"{run.path} is not in {root}: it is not moved to its trash")
    trash = root / TRASH
    try:
        ignore_folder(trash)
        target = _free_name(trash / run.path.name)
        with DirectoryLock(run.path, run=run.uuid):
            os.rename(run.path, target)
    except OSError as error:
        if isinstance(error, RunDirectoryError):
            raise
        raise RunDirectoryError(
            error.errno, f"it cannot be removed: {error.strerror}", str(run.path)
        ) from error
    return target


def in_trash(root: Path) -> Runs:
    """The runs in the trash of a folder, those removed last first."""
    trash = root / TRASH
    if not trash.is_dir():
        return Runs([])
    found = []
    for directory in trash.iterdir():
        record = read_record(directory)
        if not isinstance(record, PassedOver):
            found.append(Run(directory, record))
    return Runs(sorted(found, key=lambda run: run.path.stat().st_ctime, reverse=True))


def restore(run: Run, root: Path) -> Path:
    """Bring a run back from the trash.

    Raises:
        RunDirectoryError: The name of the run is taken, or it cannot be moved.
    """
    target = root / run.path.name
    if os.path.lexists(target):
        raise RunDirectoryError(f"{target} is there already: the run stays in the trash")
    try:
        os.rename(run.path, target)
    except OSError as error:
        reason = f"it cannot be brought back: {error.strerror}"
        raise RunDirectoryError(error.errno, reason, str(run.path)) from error
    return target


def empty_trash(runs: Iterable[Run]) -> int:
    """Delete runs in the trash for good; returns how many bytes that freed.

    Raises:
        RunDirectoryError: A run cannot be deleted.
    """
    freed = 0
    for run in runs:
        size = run.size
        try:
            shutil.rmtree(run.path)
        except OSError as error:
            reason = f"it cannot be deleted: {error.strerror}"
            raise RunDirectoryError(error.errno, reason, str(error.filename)) from error
        freed += size
    return freed


@dataclass(frozen=True)
class CheckpointPlan:
    """The checkpoints of a run that may go."""

    run: Run
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Directories of shards that no other checkpoint names."""

    @property
    def size(self) -> int:
        """Bytes that this frees: a file with another name that stays frees none."""
        removed: dict[tuple[int, int], list[int]] = {}
        for path in self._all_files():
            with suppress(OSError):
                status = path.lstat()
                removed.setdefault((status.st_dev, status.st_ino), []).append(status.st_size)
                if len(removed[status.st_dev, status.st_ino]) == status.st_nlink:
                    removed[status.st_dev, status.st_ino].append(-1)
        return sum(sizes[0] for sizes in removed.values() if sizes[-1] == -1)

    def _all_files(self) -> Iterator[Path]:
        yield from self.files
        for folder in self.folders:
            yield from (path for path in folder.rglob("*") if not path.is_dir())

    def carry_out(self) -> int:
        """Remove them; returns the bytes that this freed.

        Raises:
            RunDirectoryError: A process works on the run, or a file cannot be removed.
        """
        freed = self.size
        try:
            with DirectoryLock(self.run.path, run=self.run.uuid):
                _drop_from_index(self.files)
                for path in self.files:
                    path.unlink(missing_ok=True)
                for folder in self.folders:
                    shutil.rmtree(folder)
        except OSError as error:
            if isinstance(error, RunDirectoryError):
                raise
            reason = f"it cannot be removed: {error.strerror}"
            raise RunDirectoryError(error.errno, reason, str(error.filename)) from error
        return freed


def plan_checkpoints(
    runs: Sequence[Run], all_runs: Runs, *, keep_best: int = 3, older_than: float = 0.0
) -> list[CheckpointPlan]:
    """The checkpoints that may go.

    Kept are: `best` of every run; all of the best runs, of those that are tagged, run now, or are
    the parent of another; and `latest` of a run that can still be gone on with.

    Args:
        runs: The runs to look at.
        all_runs: The runs of the whole folder.
        keep_best: The number of the best runs that keep everything, for each monitor.
        older_than: Seconds; only runs that ended longer ago are looked at.
    """
    kept = {run.uuid for run in _keep_best(all_runs, keep_best)} | parents(all_runs)
    plans = []
    for run in runs:
        if run.uuid in kept or run.tags or run.is_running or (run.age or 0.0) < older_than:
            continue
        plan = _plan(run)
        if plan.files:
            plans.append(plan)
    return plans


def _keep_best(runs: Runs, count: int) -> list[Run]:
    kept: list[Run] = []
    for monitor, mode in {(run.monitor, run.monitor_mode) for run in runs if run.best}:
        own = Runs(run for run in runs if (run.monitor, run.monitor_mode) == (monitor, mode))
        with suppress(MetricError):
            kept += own.ranked()[:count]
    return kept


def _plan(run: Run) -> CheckpointPlan:
    checkpoints = run.checkpoints
    may_go = [file for file in checkpoints if not _stays(file.name, run.status)]
    # without `best` the last one is all that there is
    if not any(file.name.startswith("best") for file in checkpoints):
        may_go = [file for file in may_go if file.name != "latest"]
    names = {file.name for file in may_go}
    staying = [file for file in checkpoints if file.name not in names]
    if any(file.sha256 is None for file in staying):  # it may name any shards
        return CheckpointPlan(run, [f.path for f in may_go if not f.shards and f.sha256])
    named = {file.shards for file in staying}
    shards = {
        file.path.parent / str(file.shards) for file in may_go if _is_free(file.shards, named)
    }
    return CheckpointPlan(run, [file.path for file in may_go if file.sha256], sorted(shards))


def _is_free(shards: str | None, named: Collection[str | None]) -> bool:
    return shards is not None and shards not in named and Path(shards).name == shards


def _stays(name: str, status: str) -> bool:
    return name.startswith("best") or (name == "latest" and status not in _ENDED_WELL)


def _drop_from_index(files: Sequence[Path]) -> None:
    """The index lists what there is, for people: the files themselves are what counts."""
    if not files:
        return
    index = files[0].parent / "index.json"
    with suppress(OSError, ValueError):
        content: Any = read_json(index)
        if isinstance(content, dict) and isinstance(content.get("checkpoints"), dict):
            for path in files:
                content["checkpoints"].pop(path.stem, None)
            write_json(index, content)


def _free_name(path: Path) -> Path:
    number, target = 1, path
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.{number}")
    return target
