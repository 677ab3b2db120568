"""Running what is missing of a sweep, some at a time.

What has been done is read from the runs themselves. So a sweep that was killed is started again
with the same words, and goes on: a configuration that has finished is not run again, one that was
killed goes on in its own directory, and one that still runs is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from danling.errors import RunError, RunLockedError
from danling.experiments.code import CODE_FOLDER, ignore_folder
from danling.experiments.collection import Runs, runs
from danling.experiments.commands import split_command
from danling.experiments.reading import read_json
from danling.experiments.run import Run
from danling.experiments.sweeps.grid import Configuration
from danling.experiments.sweeps.snapshot import snapshot
from danling.experiments.values import value_text
from danling.files.atomic import write_json
from danling.identity import ids
from danling.identity.code import read_code

__all__ = ["Job", "Sweep"]


_FOLDER = ".danling/sweeps"
_ENDED_WELL = ("finished", "stopped")
_POLL = 0.05  # seconds between two looks at the processes
_OWN = ("resume", "project_root")


@dataclass
class Job:
    """One configuration of a sweep."""

    number: int
    configuration: Configuration
    status: str = "waiting"
    """waiting, running, finished, skipped (it had finished before), failed or unfinished."""
    run: Run | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    lock: IO[bytes] | None = field(default=None, repr=False)
    """Held by the process as well, so that it outlives a sweep that is killed."""

    @property
    def flags(self) -> list[str]:
        return [f"--{key}={value}" for key, value in self.configuration.items()]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.configuration.items()) or "-"


class Sweep:
    """The configurations of a script, each run once.

    Args:
        script: The script, which reads its configuration with `Config.parse`.
        configurations: Those to run.
        root: The folder of the runs; it is made.
        renew: Whether to take the code as it is now even where a sweep of the same words has begun
            with other code and is not through.

    Raises:
        RunError: There is no such script, or its code cannot be copied.
        RunLockedError: This sweep is running already.
    """

    def __init__(
        self,
        script: Path,
        configurations: Sequence[Configuration],
        root: Path,
        *,
        renew: bool = False,
    ) -> None:
        self.root = root.resolve()
        self.jobs = [Job(number, each) for number, each in enumerate(configurations)]
        words = [str(script), *(" ".join(job.flags) for job in self.jobs)]
        name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
        self.folder = self.root / _FOLDER / name
        _make_root(self.root)
        ignore_folder(self.folder)
        self._lock = _locked(self.folder / "sweep.lock")
        if self._lock is None:
            raise RunLockedError(f"this sweep is running already: {self.folder}")
        self.note = ""
        """What there is to say about the code."""
        try:
            self.script = self._code(script, renew)
        except BaseException:
            self.close()
            raise
        code = read_code(self.script.parent, exclude=[self.root], timeout=60.0)
        self.experiment_id = ids.experiment_uuid(code).hex

    def _code(self, script: Path, renew: bool) -> Path:
        """The copy of the code: that of the sweep's beginning, unless it is through."""
        state = self.folder / "sweep.json"
        now = snapshot(script, self.root, self.root / CODE_FOLDER)
        try:
            before = self.root / str(read_json(state)["script"])
        except (OSError, ValueError, KeyError, TypeError):
            before = now
        if before != now and before.is_file() and not renew and not self._is_through(before):
            self.note = "the code has changed since this sweep began: it goes on with that of then"
            return before
        relative = now.relative_to(self.root).as_posix()
        write_json(state, {"schema": 1, "script": relative, "jobs": [j.flags for j in self.jobs]})
        return now

    def _is_through(self, script: Path) -> bool:
        code = read_code(script.parent, exclude=[self.root], timeout=60.0)
        experiment = ids.experiment_uuid(code).hex
        found = [_matches(job, runs(self.root), script.name, experiment) for job in self.jobs]
        return all(any(run.status in _ENDED_WELL for run in own) for own in found)

    def run(
        self, jobs: int = 1, tell: Callable[[Job], None] = lambda job: None, *, retry: bool = False
    ) -> Counter[str]:
        """Run what is missing.

        Args:
            jobs: How many processes at a time.
            tell: Called whenever the status of a configuration has changed.
            retry: Whether to try those again that failed before.

        Returns:
            How many configurations have which status.
        """
        waiting = self._skip_done(tell, retry)
        active: list[Job] = []
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    job = waiting.pop(0)
                    self._start(job)
                    active.append(job)
                    tell(job)
                for job in [job for job in active if self._has_ended(job)]:
                    active.remove(job)
                    self._settle(job)
                    tell(job)
                time.sleep(_POLL)
        except BaseException:
            for job in active:  # they save what they have, and end
                if job.process is not None and job.process.poll() is None:
                    job.process.terminate()
            for job in active:
                if job.process is not None:
                    job.process.wait()
            raise
        return Counter(job.status for job in self.jobs)

    def close(self) -> None:
        """Let another process run this sweep."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _skip_done(self, tell: Callable[[Job], None], retry: bool) -> list[Job]:
        found, waiting = runs(self.root), []
        for job in self.jobs:
            own = _matches(job, found, self.script.name, self.experiment_id)
            done = [run for run in own if run.status in _ENDED_WELL]
            failed = [run for run in own if run.status == "failed"]
            if done:
                job.status, job.run = "skipped", done[0]
            elif failed and not retry:
                job.status, job.run = "failed", failed[0]
            else:
                waiting.append(job)
                continue
            tell(job)
        return waiting

    def _start(self, job: Job) -> None:
        """Start a configuration; one that a killed sweep has left running is waited for."""
        job.status = "running"
        job.lock = _locked(self.folder / f"{job.number}.lock")
        if job.lock is None:
            return
        own = _matches(job, runs(self.root), self.script.name, self.experiment_id)
        if any(run.is_running for run in own):  # started by hand
            return
        own_flags = ["--project_root", str(self.root), "--resume", "auto"]
        with open(self.folder / f"{job.number}.log", "ab") as log:
            job.process = subprocess.Popen(
                [sys.executable, str(self.script), *job.flags, *own_flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[job.lock.fileno()],
            )

    def _has_ended(self, job: Job) -> bool:
        if job.process is not None:
            return job.process.poll() is not None
        if job.lock is None:
            job.lock = _locked(self.folder / f"{job.number}.lock")
            return job.lock is not None
        own = _matches(job, runs(self.root), self.script.name, self.experiment_id)
        return not any(run.is_running for run in own)

    def _settle(self, job: Job) -> None:
        """Say how a configuration ended, by its run."""
        own = _matches(job, runs(self.root), self.script.name, self.experiment_id)
        done = [run for run in own if run.status in _ENDED_WELL]
        job.run = next(iter(done or own), None)
        if done:
            job.status = "finished"
        elif job.run is None or job.run.status == "failed":
            job.status = "failed"
        else:
            job.status = "unfinished"
        if job.lock is not None:
            job.lock.close()
        job.lock = job.process = None

    def reason(self, job: Job) -> str:
        """Why a configuration failed: what its run says, else the last line that it printed."""
        if job.run is not None:
            return job.run.reason or ""
        with contextlib.suppress(OSError):
            text = (self.folder / f"{job.number}.log").read_text(errors="replace").strip()
            return text.rpartition("\n")[2]
        return ""

    def outcome(self, job: Job) -> str:
        """How a configuration stands, in a few words."""
        if job.status in ("finished", "skipped") and job.run is not None:
            score = job.run.score
            told = "" if score is None else f"  {job.run.monitor} {value_text(score)}"
            return f"{job.status}{told}"
        return f"{job.status}: {self.reason(job)}" if job.status == "failed" else job.status


def _matches(job: Job, found: Runs, script: str, experiment_id: str) -> list[Run]:
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


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not any(root.iterdir()):
            (root / ".gitignore").write_text("*\n")
    except OSError as error:
        raise RunError(f"{root} cannot be written to: {error.strerror}") from error


def _locked(path: Path) -> IO[bytes] | None:
    """A lock on a file, which processes that inherit the file hold too; None if another has it."""
    file = open(path, "ab")  # noqa: SIM115  # open as long as it is locked
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    os.set_inheritable(file.fileno(), False)
    return file
