"""Running what is missing of a sweep, some at a time.

What has been done is read from the runs themselves. So a sweep that was killed is started again
with the same words, and goes on: a configuration that has finished is not run again, one that was
killed goes on in its own directory, and one that still runs is waited for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from danling.errors import RunError, RunLockedError
from danling.experiments.collection import runs
from danling.experiments.reading import read_json
from danling.experiments.repeat.code import CODE_FOLDER, ignore_folder
from danling.experiments.run import Run
from danling.experiments.sweeps.grid import Configuration
from danling.experiments.sweeps.job import Job, runs_of
from danling.experiments.sweeps.locking import locked
from danling.experiments.sweeps.snapshot import snapshot
from danling.experiments.values import value_text
from danling.files.atomic import write_json
from danling.identity import ids
from danling.identity.code import read_code

__all__ = ["Source", "Sweep"]


_FOLDER = ".danling/sweeps"
_POLL = 0.05  # seconds between two looks at the processes


class Source(Protocol):
    """A source of configurations that are not all known when a sweep begins."""

    def ask(self) -> Job | None:
        """The next configuration; None when there is no more for now."""

    def tell(self, job: Job) -> None:
        """Hear how a configuration ended, and say so in its status."""


class Sweep:
    """The configurations of a script, each run once.

    Args:
        script: The script, which reads its configuration with `Config.parse`.
        configurations: The configurations that are known already.
        root: The folder of the runs; it is made.
        renew: Whether to take the code as it is now even where a sweep of the same words has begun
            with other code and is not through.
        words: The words that tell it from others of the same script; the configurations if None.

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
        words: Sequence[str] | None = None,
    ) -> None:
        self.root = root.resolve()
        self.jobs = [Job(number, each) for number, each in enumerate(configurations)]
        words = [" ".join(job.flags) for job in self.jobs] if words is None else words
        name = hashlib.sha256("\0".join([str(script), *words]).encode()).hexdigest()[:12]
        self.folder = self.root / _FOLDER / name
        _make_root(self.root)
        ignore_folder(self.folder)
        self._lock = locked(self.folder / "sweep.lock")
        if self._lock is None:
            raise RunLockedError(f"this sweep is running already: {self.folder}")
        self.note = ""
        """The remarks about the code."""
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
        if not self.jobs:  # nobody knows what an optimisation is still going to try
            return False
        code = read_code(script.parent, exclude=[self.root], timeout=60.0)
        experiment, found = ids.experiment_uuid(code).hex, runs(self.root)
        own = [runs_of(job, found, script.name, experiment) for job in self.jobs]
        return all(any(run.has_ended_well for run in each) for each in own)

    def run(
        self,
        jobs: int = 1,
        tell: Callable[[Job], None] = lambda job: None,
        *,
        retry: bool = False,
        source: Source | None = None,
    ) -> Counter[str]:
        """Run what is missing.

        Args:
            jobs: The number of processes at a time.
            tell: A function that is called whenever the status of a configuration has changed.
            retry: Whether to try those again that failed before.
            source: The source of further configurations.

        Returns:
            The number of configurations by status.
        """
        waiting = self.skip_done(tell, retry=retry)
        active: list[Job] = []
        try:
            while True:
                while len(active) < jobs and (job := self._next(waiting, source)) is not None:
                    self._start(job)
                    active.append(job)
                    tell(job)
                if not active:
                    break
                self._collect(active, tell, source)
                time.sleep(_POLL)
        except BaseException:
            _end(active)
            raise
        return Counter(job.status for job in self.jobs)

    def _collect(
        self, active: list[Job], tell: Callable[[Job], None], source: Source | None
    ) -> None:
        """Settle the configurations whose processes have ended."""
        for job in [job for job in active if self._has_ended(job)]:
            active.remove(job)
            self._settle(job)
            if source is not None:
                source.tell(job)
            tell(job)

    def _next(self, waiting: list[Job], source: Source | None) -> Job | None:
        if waiting:
            return waiting.pop(0)
        job = source.ask() if source is not None else None
        if job is not None:
            self.jobs.append(job)
        return job

    def close(self) -> None:
        """Let another process run this sweep."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def runs_of(self, job: Job) -> list[Run]:
        """The runs that a configuration has, as they are now."""
        return runs_of(job, runs(self.root), self.script.name, self.experiment_id)

    def skip_done(self, tell: Callable[[Job], None], *, retry: bool = False) -> list[Job]:
        """Note which configurations have ended before, and return the others."""
        found, waiting = runs(self.root), []
        for job in self.jobs:
            own = runs_of(job, found, self.script.name, self.experiment_id)
            done = [run for run in own if run.has_ended_well]
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

    def command(self, job: Job) -> list[str]:
        """The command line of a configuration; typed again, it goes on where it was."""
        own = ["--project_root", str(self.root), "--resume", "auto"]
        return [sys.executable, str(self.script), *job.flags, *own]

    def _start(self, job: Job) -> None:
        """Start a configuration; one that a killed sweep has left running is waited for."""
        job.status = "running"
        job.lock = locked(self.folder / f"{job.number}.lock")
        if job.lock is None:
            return
        own = self.runs_of(job)
        if any(run.is_running or run.has_ended_well for run in own):  # started by hand
            return
        with open(self.folder / f"{job.number}.log", "ab") as log:
            job.process = subprocess.Popen(
                self.command(job),
                env={**os.environ, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[job.lock.fileno()],
            )

    def _has_ended(self, job: Job) -> bool:
        if job.process is not None:
            return job.process.poll() is not None
        if job.lock is None:
            job.lock = locked(self.folder / f"{job.number}.lock")
            return job.lock is not None
        own = self.runs_of(job)
        return not any(run.is_running for run in own)

    def _settle(self, job: Job) -> None:
        """Say how a configuration ended, by its run."""
        own = self.runs_of(job)
        done = [run for run in own if run.has_ended_well]
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
        """The state of a configuration, in a few words."""
        if job.status in ("finished", "skipped") and job.run is not None:
            score = job.run.score
            told = "" if score is None else f"  {job.run.monitor} {value_text(score)}"
            return f"{job.status}{told}"
        return f"{job.status}: {self.reason(job)}" if job.status == "failed" else job.status


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not any(root.iterdir()):
            (root / ".gitignore").write_text("*\n")
    except OSError as error:
        raise RunError(f"{root} cannot be written to: {error.strerror}") from error


def _end(active: Sequence[Job]) -> None:
    """Ask processes to save what they have, and wait until they have ended."""
    for job in active:
        if job.process is not None and job.process.poll() is None:
            job.process.terminate()
    for job in active:
        if job.process is not None:
            job.process.wait()
