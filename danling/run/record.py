"""`run.json`: what a run is, how it stands, and every launch that worked on it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

from danling.errors import ConfigError, RunDirectoryError
from danling.files.atomic import write_json
from danling.files.json import dumps, read_json
from danling.identity.code import Code
from danling.identity.environment import launch_entry
from danling.identity.redaction import mask_values

__all__ = ["SCHEMA", "STATUSES", "TIME_BUDGET", "RunFile", "record_digest"]


SCHEMA = 1
"""Version of the layout of run.json."""

STATUSES = ("running", "finished", "stopped", "failed", "preempted", "interrupted")
"""The statuses of a run; one that says "running" and is not locked was killed."""

TIME_BUDGET = "max_time of "
"""The beginning of the reason of a run that its time budget stopped; it is not finished."""


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "id", "uuid", "status"), (str,)),
    **dict.fromkeys(("run_id", "run_uuid", "experiment_id", "experiment_uuid"), (str,)),
    **dict.fromkeys(("reason", "created", "started", "ended"), (str, type(None))),
    **dict.fromkeys(("code", "environment", "hash_inputs"), (dict,)),
    "launches": (list,),
}
_LAUNCH_KEYS = {"end_time", "exit_reason"}


class RunFile:
    """The content of `run.json`.

    The file is rewritten in one step, is valid JSON at any moment, and holds no secret.

    Args:
        path: The file.
        data: The content of the file.

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
            environment: The environment, as from `danling.identity.environment.read_environment`.
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
            data = read_json(path)
        except ConfigError as error:
            raise RunDirectoryError(errno.EINVAL, f"not a run: {error}", str(path)) from error
        except FileNotFoundError as error:
            message = "not a run: it has no such file"
            raise RunDirectoryError(errno.ENOENT, message, str(path)) from error
        except OSError as error:
            message = f"the run cannot be read: {error.strerror}"
            raise RunDirectoryError(error.errno, message, str(path)) from error
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise RunDirectoryError(errno.EINVAL, "not a run: there is no schema in it", str(path))
        if data["schema"] > SCHEMA:
            message = f"written by a later DanLing (schema {data['schema']}, known is {SCHEMA})"
            raise RunDirectoryError(errno.EINVAL, message, str(path))
        if (key := _first_wrong(data)) is not None:
            message = f"the record of the run is damaged: {key} is not what any version writes"
            raise RunDirectoryError(errno.EINVAL, message, str(path))
        return cls(path, data)

    def launch(self, *, start_step: int, uuid: UUID | None = None) -> dict[str, Any]:
        """Add this process to the launches of the run, which is running from now on."""
        now = _now()
        for earlier in self.data["launches"]:
            if earlier.get("end_time") is None and earlier.get("exit_reason") is None:
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
        content = dict(mask_values(self.data))
        write_json(self.path, {**content, "digest": record_digest(content)}, fsync=True)


def record_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a run.json but for its `digest`, by which a change is found.

    Example:
        >>> record_digest({"status": "finished"}) == record_digest({"status": "failed"})
        False
    """
    content = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(dumps(content).encode()).hexdigest()


def _first_wrong(data: Mapping[str, Any]) -> str | None:
    """The first key whose value no version of DanLing writes; what is missing is not looked at."""
    for key, kinds in _KINDS.items():
        if key in data and not isinstance(data[key], kinds):
            return key
    if data.get("status", "running") not in STATUSES:
        return "status"
    for number, launch in enumerate(data.get("launches", ())):
        if not isinstance(launch, dict) or not launch.keys() >= _LAUNCH_KEYS:
            return f"launches[{number}]"
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
