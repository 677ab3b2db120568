"""Finding runs: those of a project, and the one that a restarted job goes on with.

A directory that was not renamed has the first digits of its ids at the end of its name. So the runs
of one code and configuration are found by the names of the directories, and only their own files
are opened, however many runs there are. There is no index that could be wrong.
"""

from __future__ import annotations

import heapq
import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from danling.errors import RunDirectoryError
from danling.run.directory import RunPaths
from danling.run.lock import is_locked
from danling.run.record import TIME_BUDGET, RunFile

__all__ = ["FoundRun", "damage", "find_job", "find_namesakes", "find_runs", "folders_of"]


_ENDED = ("finished", "stopped")
_IDS = re.compile(r"-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})")
_IDS_LENGTH = 27


@dataclass(frozen=True)
class FoundRun:
    """A run on the disk."""

    path: Path
    """Its directory."""
    data: Mapping[str, Any]
    """Its run.json."""

    @property
    def run_id(self) -> str:
        return str(self.data["run_id"])

    @property
    def created(self) -> str:
        """The time of creation in UTC, as text that sorts by time."""
        return str(self.data["created"])

    @property
    def status(self) -> str:
        """The recorded status; "killed" for a run that says "running" while nobody works on it."""
        status = str(self.data["status"])
        return "killed" if status == "running" and not self.locked else status

    @property
    def locked(self) -> bool:
        """Whether a process works on it now."""
        return is_locked(self.path)

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do; a run that a time budget stopped goes on."""
        if self.data["status"] == "stopped":
            return str(self.data.get("reason")).startswith(TIME_BUDGET)
        return self.data["status"] not in _ENDED


def find_runs(project_root: str | os.PathLike[str], run_id: str | None = None) -> list[FoundRun]:
    """The runs of a project, newest first; what is no run, or a broken one, is passed over.

    Age is what run.json says, since copying changes the times of files.

    Args:
        project_root: The folder of the runs; it need not exist.
        run_id: The id of the code and configuration that the runs must have.

    Example:
        >>> find_runs(getfixture("tmp_path") / "experiments")
        []
    """
    found = [run for run in map(_read, folders_of(project_root, run_id)) if run]
    return _newest_first(run for run in found if run_id in (None, run.run_id))


def find_namesakes(
    project_root: str | os.PathLike[str], name: str, limit: int | None = 100
) -> list[FoundRun]:
    """The runs of a project that have the same name, newest first.

    Args:
        project_root: The folder of the runs.
        name: `{experiment_name}-{run_name}`.
        limit: The number of runs that are read: those whose directories were changed last.
    """
    length = len(name) + _IDS_LENGTH
    folders = [
        folder
        for folder in folders_of(project_root)
        if ids_in(folder.name) is None
        or (len(folder.name) == length and folder.name.startswith(name))
    ]
    if limit is not None:
        folders = heapq.nlargest(limit, folders, key=_changed)
    found = [run for run in map(_read, folders) if run and run.data.get("name") == name]
    return _newest_first(found)


def folders_of(project_root: str | os.PathLike[str], run_id: str | None = None) -> list[Path]:
    """The directories in a project; with a `run_id` those that may hold a run of it."""
    begin = None if run_id is None else run_id[:8]
    try:
        with os.scandir(project_root) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if (begin is None or (ids_in(entry.name) or (None, begin, None))[1] == begin)
                and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def ids_in(name: str) -> tuple[str, str, str] | None:
    """The first digits of experiment_id, run_id and uuid in the name of a directory.

    Example:
        >>> ids_in("digits-mlp-01234567-89abcdef-00112233"), ids_in("my favourite")
        (('01234567', '89abcdef', '00112233'), None)
    """
    found = _IDS.fullmatch(name[-_IDS_LENGTH:])
    return (found[1], found[2], found[3]) if found else None


def damage(folder: Path, checkpoints: Path) -> str | None:
    """The fault of the run.json of a directory that has checkpoints; None if it has none.

    A directory without a checkpoint and without run.json is that of a process which died before
    it had done anything.

    Args:
        folder: The directory of a run.
        checkpoints: The folder of its checkpoints.
    """
    file = RunPaths(folder).run_json
    try:
        data = RunFile.read(file).data
    except RunDirectoryError as error:
        is_begun = os.path.lexists(file) or _has_entries(checkpoints)
        return error.strerror if is_begun else None
    for name in ("experiment", "run"):
        if data.get(f"{name}_id") != _hex(data.get(f"{name}_uuid")):
            return f"its {name}_id and its {name}_uuid contradict each other"
    ids = (data.get("experiment_id"), data.get("run_id"), _hex(data.get("uuid")))
    short = ids_in(folder.name)
    if not all(ids) or (short and tuple(str(part)[:8] for part in ids) != short):
        return "its ids are not those in the name of the directory"
    for key in ("status", "launches", "created"):  # what is there was checked as it was read
        if data.get(key) is None:
            return f"it lacks {key}"
    return None


def find_job(
    project_root: str | os.PathLike[str], *, run_id: str = "", name: str = ""
) -> FoundRun | None:
    """The run that an earlier attempt of this very job worked on, if this is a restart.

    A restart is told by torchelastic (`TORCHELASTIC_RESTART_COUNT`) or SLURM
    (`SLURM_RESTART_COUNT`), and matched with the launches in run.json. A job may hold several runs:
    that of the same run_id is taken, else that of the same name, else the only one.

    Example:
        >>> find_job(getfixture("tmp_path")) is None
        True
    """
    if not (_count("TORCHELASTIC_RESTART_COUNT") or _count("SLURM_RESTART_COUNT")):
        return None
    if run_id:  # these are found without reading all runs
        for run in find_runs(project_root, run_id):
            if _is_of_this_job(run) and not run.locked:
                return run
    candidates = [run for run in find_runs(project_root) if _is_of_this_job(run)]
    free = [run for run in candidates if not run.locked]
    same = [run for run in free if name and run.data.get("name") == name]
    if same:
        return same[0]
    return free[0] if len(candidates) == len(free) == 1 else None


def _read(folder: Path) -> FoundRun | None:
    with suppress(RunDirectoryError, OSError):
        data = RunFile.read(RunPaths(folder).run_json).data
        texts = [data.get(key) for key in ("run_id", "created", "status")]
        if all(isinstance(text, str) for text in texts):
            return FoundRun(folder, data)
    return None


def _newest_first(runs: Iterable[FoundRun]) -> list[FoundRun]:
    # Of a run and its copy, the one that still has its own name is the original.
    return sorted(runs, key=lambda run: (run.created, _has_own_name(run)), reverse=True)


def _has_own_name(run: FoundRun) -> bool:
    identifier = run.data.get("id")
    return isinstance(identifier, str) and run.path.name.endswith(identifier)


def _has_entries(folder: Path) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False


def _changed(folder: Path) -> float:
    try:
        return os.stat(folder).st_mtime
    except OSError:
        return 0.0


def _hex(uuid: object) -> str | None:
    with suppress(ValueError):
        return UUID(str(uuid)).hex
    return None


def _count(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else 0


def _is_of_this_job(run: FoundRun) -> bool:
    launches = run.data.get("launches")
    entries = launches if isinstance(launches, list) else []
    return any(
        isinstance(entry, dict) and (_is_slurm_job(entry) or _is_torchelastic_job(entry))
        for entry in entries
    )


def _is_slurm_job(launch: Mapping[str, Any]) -> bool:
    """A requeued job, or task of an array, keeps its id."""
    recorded = launch.get("slurm")
    job = os.environ.get("SLURM_JOB_ID")
    if not _count("SLURM_RESTART_COUNT") or not job or not isinstance(recorded, dict):
        return False
    keys = ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME")
    return all(recorded.get(key) == os.environ.get(key) for key in keys)


def _is_torchelastic_job(launch: Mapping[str, Any]) -> bool:
    """The agent that restarts workers is their parent; without --rdzv-id all jobs are "none"."""
    recorded = launch.get("torchelastic")
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if not _count("TORCHELASTIC_RESTART_COUNT") or not job or not isinstance(recorded, dict):
        return False
    if recorded.get("TORCHELASTIC_RUN_ID") != job:
        return False
    if launch.get("host") == socket.gethostname():
        return launch.get("parent_pid") == os.getppid()
    return job != "none"
