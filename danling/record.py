"""The directory of a run: the names of its files, how it is claimed, and `run.json`.

This is the only module that knows the names. No file holds an absolute path that is needed to find
another, so a run that was moved or copied works.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

from danling.environment import launch_entry
from danling.errors import ConfigError, RunDirectoryError
from danling.failpoints import failpoint
from danling.files import write_json
from danling.identity import Code, run_identifier
from danling.jsonable import loads
from danling.lock import LOCK_NAME
from danling.masking import mask_values

__all__ = ["SCHEMA", "STATUSES", "RunFile", "RunPaths", "claim"]

SCHEMA = 1
"""Version of the layout of run.json."""

STATUSES = ("running", "finished", "stopped", "failed", "preempted", "interrupted")
"""What a run can be; one that says "running" and is not locked was killed."""

_RUN_NAME = re.compile(r".+(-[0-9a-f]{8}){3}")
_DRAWS = 100


class RunPaths:
    """Where each file of a run is.

    Args:
        path: The directory of the run.
        checkpoint_dir_name: Name of the folder of the checkpoints in it.

    Example:
        >>> RunPaths("experiments/digits-mlp").run_json.as_posix()
        'experiments/digits-mlp/run.json'
    """

    def __init__(
        self, path: str | os.PathLike[str], checkpoint_dir_name: str = "checkpoints"
    ) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / checkpoint_dir_name
        self.log = self.path / "run.log"
        self.runner_yaml = self.path / "runner.yaml"
        self.results = self.path / "results.json"
        self.latest = self.path / "latest.json"
        self.best = self.path / "best.json"
        self.metrics = self.path / "metrics.jsonl"
        self.run_json = self.path / "run.json"
        self.lock = self.path / LOCK_NAME
        self.metadata = self.path / "metadata"
        self.code_patch = self.metadata / "code.patch"
        self.packages = self.metadata / "packages.json"
        self.abandoned = self.metadata / "abandoned.jsonl"

    def __repr__(self) -> str:
        return f"RunPaths({str(self.path)!r})"

    def check(self) -> None:
        """Refuse a directory that is not one, or in which writing a file would change another.

        Raises:
            RunDirectoryError: It is not there, not writable, or a name in it is a symbolic link.
        """
        if not self.path.is_dir():
            raise RunDirectoryError(
                errno.ENOENT, "the directory of the run is gone", str(self.path)
            )
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise RunDirectoryError(errno.EACCES, "the run cannot be written to", str(self.path))
        for path in vars(self).values():
            if path != self.path and path.is_symlink():
                target = os.readlink(path)
                message = f"refusing to write through a symbolic link to {target}: remove it"
                raise RunDirectoryError(errno.ELOOP, message, str(path))


def claim(
    project_root: str | os.PathLike[str], name: str, experiment_id: str, run_id: str
) -> tuple[Path, UUID]:
    """Make a directory that no other run has, whatever happens at the same time.

    Args:
        project_root: Folder of all runs; it is created, with a `.gitignore`, where there is none.
        name: Name of the run, from `danling.identity.run_name`.
        experiment_id: Identity of the code.
        run_id: Identity of code and configuration.

    Returns:
        The directory, `{name}-{id}`, as an absolute path, and the uuid that was drawn for it.

    Raises:
        RunDirectoryError: It cannot be made, or would not be in `project_root`.

    Example:
        >>> path, uuid = claim(getfixture("tmp_path"), "digits-mlp", "0" * 32, "1" * 32)
        >>> path.name == f"digits-mlp-00000000-11111111-{uuid.hex[:8]}"
        True
    """
    root = Path(os.path.realpath(project_root))
    try:
        root.mkdir(parents=True, exist_ok=True)
        path, uuid = _make(root, name, experiment_id, run_id)
        _ignore(root, path)
    except OSError as error:
        if isinstance(error, RunDirectoryError):
            raise
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        message = f"no run can be made in project_root={str(project_root)!r}: {reason}"
        raise RunDirectoryError(error.errno, message, str(error.filename or root)) from error
    return path, uuid


def _make(root: Path, name: str, experiment_id: str, run_id: str) -> tuple[Path, UUID]:
    for _ in range(_DRAWS):
        uuid = uuid4()
        path = root / f"{name}-{run_identifier(experiment_id, run_id, uuid.hex)}"
        if path.parent != root or ".." in path.parts:
            raise RunDirectoryError(errno.EINVAL, "the run would lie outside project_root", name)
        with suppress(FileExistsError):
            path.mkdir()  # fails if the name is taken, be it by a link
            failpoint("run.after_directory")
            return path, uuid
    message = f"{_DRAWS} names drawn at random were all taken"
    raise RunDirectoryError(errno.EEXIST, message, str(root))


def _ignore(root: Path, path: Path) -> None:
    """Keep runs out of git: all of project_root if it is ours, else this run alone."""
    for folder in (root, path):
        ignore = folder / ".gitignore"
        with suppress(FileNotFoundError):
            patterns = ignore.read_text(encoding="utf-8", errors="replace").split()
            if not patterns or "*" in patterns:  # empty: another process is about to fill it
                return
            continue  # the user's own
        others = [entry.name for entry in os.scandir(folder)]
        if all(_RUN_NAME.fullmatch(name) or name == ".gitignore" for name in others):
            with suppress(FileExistsError), open(ignore, "x", encoding="utf-8") as file:
                file.write("*\n")
            return


class RunFile:
    """`run.json`: what a run is, how it stands, and every launch that worked on it.

    It is rewritten in one step, is valid JSON at any moment, and holds no secret.

    Args:
        path: The file.
        data: What is in it.

    Example:
        >>> path = getfixture("tmp_path") / "run.json"
        >>> run = RunFile.create(path, {"name": "digits-mlp"}, code=Code(), hash_inputs={"lr": 0.1})
        >>> launch = run.launch(start_step=0)
        >>> run.close("finished", "max_epochs reached", step=100)
        >>> RunFile.read(path).data["status"]
        'finished'
    """

    def __init__(self, path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.data = dict(data)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        names: Mapping[str, str],
        *,
        code: Code,
        hash_inputs: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write the file of a new run.

        Args:
            path: The file.
            names: The ids and names of the run: name, id, uuid, run_id, experiment_id, ...
            code: The code that runs.
            hash_inputs: The part of the configuration that `run_id` was made of.
            environment: As from `danling.environment.read_environment`.
        """
        data: dict[str, Any] = {
            "schema": SCHEMA,
            **names,
            "status": "running",
            "reason": None,
            "created": _now(),
            "started": None,
            "ended": None,
            "launches": [],
            "code": asdict(code),
            "environment": dict(environment or {}),
            "hash_inputs": dict(hash_inputs),
        }
        run = cls(path, data)
        run.save()
        return run

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read the file of a run.

        Raises:
            RunDirectoryError: There is none, it is broken, or of a later version of DanLing.
        """
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise RunDirectoryError(errno.EINVAL, "not a regular file", str(path))
            data = loads(Path(path).read_text(encoding="utf-8"), str(path))
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunDirectoryError(errno.EINVAL, f"not a run: {error}", str(path)) from error
        except FileNotFoundError as error:
            message = "not a run: it has no such file"
            raise RunDirectoryError(errno.ENOENT, message, str(path)) from error
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise RunDirectoryError(errno.EINVAL, "not a run: there is no schema in it", str(path))
        if data["schema"] > SCHEMA:
            message = f"written by a later DanLing (schema {data['schema']}, known is {SCHEMA})"
            raise RunDirectoryError(errno.EINVAL, message, str(path))
        return cls(path, data)

    def launch(self, *, start_step: int, uuid: UUID | None = None) -> dict[str, Any]:
        """Add this process to the launches of the run, which is running from now on."""
        now = _now()
        for earlier in self.data["launches"]:
            if earlier["end_time"] is None and earlier["exit_reason"] is None:
                earlier["exit_reason"] = "killed"  # it had no time to say when
        entry = {
            "uuid": str(uuid or uuid4()),
            **launch_entry(),
            "start_time": now,
            "start_step": start_step,
            "end_time": None,
            "end_step": None,
            "exit_reason": None,
        }
        self.data["launches"].append(entry)
        self.update(status="running", reason=None, started=self.data["started"] or now, ended=None)
        return entry

    def close(self, status: str, reason: str | None = None, *, step: int | None = None) -> None:
        """End the latest launch, and the run with it, for now.

        Raises:
            ValueError: There is no such status.
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r}: valid are {', '.join(map(repr, STATUSES))}")
        now = _now()
        if self.data["launches"]:
            end = {"end_time": now, "end_step": step, "exit_reason": reason or status}
            self.data["launches"][-1].update(end)
        self.update(status=status, reason=reason, ended=now)

    def update(self, **values: Any) -> None:
        """Set top-level values and write the file."""
        self.data.update(values)
        self.save()

    def save(self) -> None:
        """Write the file.

        Raises:
            OSError: It cannot be written; the old one is still there.
        """
        write_json(self.path, mask_values(self.data), fsync=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
