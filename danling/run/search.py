"""Finding runs: those of a project, and the one that a restarted job goes on with."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danling.errors import RunDirectoryError
from danling.run.directory import RunPaths
from danling.run.lock import is_locked
from danling.run.record import RunFile

__all__ = ["FoundRun", "find_job", "find_runs"]


_ENDED = ("finished", "stopped")


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
        """When, in UTC, as text that sorts by time."""
        return str(self.data["created"])

    @property
    def status(self) -> str:
        """As recorded; "killed" for a run that says "running" while nobody works on it."""
        status = str(self.data["status"])
        return "killed" if status == "running" and not self.locked else status

    @property
    def locked(self) -> bool:
        """Whether a process works on it now."""
        return is_locked(self.path)

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do."""
        return self.data["status"] not in _ENDED


def find_runs(project_root: str | os.PathLike[str], run_id: str | None = None) -> list[FoundRun]:
    """The runs of a project, newest first; what is no run, or a broken one, is passed over.

    Age is what run.json says, since copying changes the times of files.

    Args:
        project_root: Folder of the runs; it need not exist.
        run_id: Only runs of this code and configuration.

    Example:
        >>> find_runs(getfixture("tmp_path") / "experiments")
        []
    """
    try:
        with os.scandir(project_root) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    found = [run for run in map(_read, folders) if run and run_id in (None, run.run_id)]
    # Of a run and its copy, the one that still has its own name is the original.
    return sorted(found, key=lambda run: (run.created, _has_own_name(run)), reverse=True)


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
    candidates = [run for run in find_runs(project_root) if _is_of_this_job(run)]
    free = [run for run in candidates if not run.locked]
    for key, value in (("run_id", run_id), ("name", name)):
        same = [run for run in free if value and run.data.get(key) == value]
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


def _has_own_name(run: FoundRun) -> bool:
    identifier = run.data.get("id")
    return isinstance(identifier, str) and run.path.name.endswith(identifier)


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
