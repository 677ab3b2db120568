"""One configuration of a sweep, and the runs that it has on the disk."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from danling.experiments.repeat.commands import split_command
from danling.experiments.run import Run
from danling.experiments.sweeps.grid import Configuration

__all__ = ["Job", "runs_of"]


_OWN = ("resume", "project_root")


@dataclass
class Job:
    """One configuration of a sweep."""

    number: int
    configuration: Configuration
    status: str = "waiting"
    """waiting, submitted, running, finished, skipped (it had finished before), failed, unfinished,
    or pruned."""
    run: Run | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for its process."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    lock: IO[bytes] | None = field(default=None, repr=False)
    """Held by the process as well, so that it outlives a sweep that is killed."""

    @property
    def flags(self) -> list[str]:
        return [f"--{key}={value}" for key, value in self.configuration.items()]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.configuration.items()) or "-"


def runs_of(job: Job, found: Iterable[Run], script: str, experiment_id: str) -> list[Run]:
    """The runs of this code that were started with just these flags: the same configuration."""
    wanted = {key: _scalar(value) for key, value in job.configuration.items()}
    return [
        run
        for run in found
        if run.experiment_id == experiment_id and _flags_of(run, script) == wanted
    ]


def _flags_of(run: Run, script: str) -> dict[str, Any] | None:
    argv = run.launches[0].get("argv") if run.launches else None
    parts = split_command([str(word) for word in argv]) if isinstance(argv, list) else None
    if parts is None or Path(parts.script).name != script:
        return None
    flags: dict[str, Any] = {}
    words = list(parts.arguments)
    while words:
        key, equals, text = words.pop(0).partition("=")
        if not key.startswith("--"):
            return None
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        flags[key.removeprefix("--").replace("-", "_")] = _scalar(text)
    return {key: value for key, value in flags.items() if key not in _OWN}


def _scalar(text: str) -> Any:
    """`1e-3` and `0.001` are one value."""
    try:
        return float(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text
