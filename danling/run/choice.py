"""The choice of a start's directory: of the same job, of the run it goes on with, or a new one.

Everything is decided here, and the directory is locked, before anything is written in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from danling.errors import DanLingError, ResumeError, RunDirectoryError, RunLockedError
from danling.files.failpoints import failpoint
from danling.files.json import to_jsonable
from danling.identity.code import Code
from danling.identity.redaction import mask_values
from danling.run.directory import RunPaths, claim
from danling.run.lock import DirectoryLock, in_use, recorded_run
from danling.run.record import RunFile
from danling.run.search import (
    FoundRun,
    damage,
    find_job,
    find_namesakes,
    find_runs,
    folders_of,
    ids_in,
)

__all__ = ["Choice", "Identify", "Plan", "Start"]


Identify = Callable[[Path], Mapping[str, Any]]
"""Reads the configuration, with the ids of the run, from the newest checkpoint of a folder."""

_LIMITS = ("max_epochs", "max_steps")


@dataclass(frozen=True)
class Start:
    """The start of a run, and its place."""

    project_root: Path
    checkpoint_dir_name: str
    name: str
    code: Code
    experiment_uuid: UUID
    run_uuid: UUID
    config: Mapping[str, Any]
    """The part of the configuration that `run_uuid` was made of."""
    resume: bool | str = False
    identify: Identify | None = None


@dataclass(frozen=True)
class Plan:
    """The decision of rank 0 for all: the directory, and where the run in it goes on from."""

    path: str
    uuid: str
    experiment_uuid: str
    run_uuid: str
    checkpoint: str | None = None
    """Name or path of the one to load; None for a run that begins."""
    message: str = ""
    """Why it is this directory."""
    doubt: str = ""
    """Why it may be the wrong run: a reason in the report of the resume."""
    rebuilt: bool = False
    """Whether run.json is lost, and has to be written anew."""


@dataclass
class Choice:
    """The decision for one start, made on the main process.

    Args:
        start: The start of the run.
    """

    start: Start
    lock: DirectoryLock | None = field(default=None, init=False)
    """The lock of the directory that was chosen."""

    def make(self) -> Plan:
        """Decide and lock.

        Raises:
            ResumeError: The run that was asked for is not there, or cannot be taken.
            RunLockedError: Another process works in it.
            RunDirectoryError: The directory cannot be made or locked.
        """
        plan = self._decide()
        self._acquire(plan)
        return plan

    def _decide(self) -> Plan:
        start = self.start
        root, resume, run_id = start.project_root, start.resume, start.run_uuid.hex
        if job := find_job(root, run_id=run_id, name=start.name):
            return _continue(job, "latest", "restarted by the same job: ")
        if not resume:
            return self._fresh()
        if resume in (True, "auto"):
            return self._automatic()
        if resume not in ("latest", "best"):
            return self._at(Path(str(resume)))
        if damaged := self._damaged(str(resume)):
            return damaged
        if runs := self._candidates():
            return _continue(runs[0], str(resume), doubt=self._doubt())
        raise ResumeError(
            f"resume={resume!r}: there is no run of this code and configuration in {root}; "
            "give the path of a run or of a checkpoint instead"
        )

    # resume="auto"

    def _automatic(self) -> Plan:
        if damaged := self._damaged("latest"):
            return damaged
        busy: list[str] = []
        foreign: list[FoundRun] = []
        for run in self._candidates():
            if not run.unfinished:
                continue
            if _is_foreign(run.path):
                foreign.append(run)
                continue
            plan = _continue(run, "latest", doubt=self._doubt())
            # the newest may be of a process that was killed and is not quite gone: wait a moment
            if not (busy and run.locked) and self._takes(plan):
                return plan
            busy.append(f"{run.path} is {in_use(run.path)}")
        if busy:
            return self._fresh(f"resume='auto': {'; '.join(busy)}: a new run starts")
        if foreign:
            raise ResumeError(_foreign_message(foreign[0].path))
        return self._fresh(self._nothing_found())

    def _candidates(self) -> list[FoundRun]:
        """The runs that may be meant, newest first."""
        start = self.start
        if not start.code.partial:
            return find_runs(start.project_root, start.run_uuid.hex)
        config = _recorded(start.config)
        runs = find_namesakes(start.project_root, start.name, limit=None)
        return [run for run in runs if _recorded(run.data.get("hash_inputs") or {}) == config]

    def _doubt(self) -> str:
        code = self.start.code
        if not code.partial:
            return ""
        return (
            f"the code could not be read ({code.note}): the run has the same name and "
            "configuration, and whether it has the same code is not known"
        )

    def _takes(self, plan: Plan) -> bool:
        """Lock a run that was found, unless another process works on it or has just ended it."""
        with suppress(RunLockedError):
            self._acquire(plan)
            run = FoundRun(Path(plan.path), RunFile.read(RunPaths(plan.path).run_json).data)
            if run.unfinished:
                return True
            self._give_up()
        return False

    def _damaged(self, checkpoint: str) -> Plan | None:
        """A run of this code and configuration whose run.json is damaged or lost."""
        start = self.start
        for folder in folders_of(start.project_root, start.run_uuid.hex):
            if ids_in(folder.name) is None:
                continue
            reason = damage(folder, folder / start.checkpoint_dir_name)
            if reason is None or _is_other_version(reason):
                continue
            if _is_foreign(folder):
                raise ResumeError(_foreign_message(folder))
            return self._rebuilt(folder, checkpoint, reason)
        return None

    def _nothing_found(self) -> str:
        start = self.start
        what, why = "code and configuration", ""
        if start.code.partial:
            what = "name and configuration"
            why = f" (the code could not be read: {start.code.note})"
        return (
            f"resume='auto' found no unfinished run of this {what} in {start.project_root}{why}: "
            f"a new one starts{self._hint()}"
        )

    def _hint(self) -> str:
        """The unfinished run that may have been meant, and how to take it."""
        start = self.start
        now = _recorded(start.config)
        for run in find_namesakes(start.project_root, start.name):
            then = _recorded(run.data.get("hash_inputs") or {})
            same_code = run.data.get("experiment_uuid") == str(start.experiment_uuid)
            take = f"resume={str(run.path)!r} (on the command line --resume {run.path})"
            lengths = {key: then.get(key) for key in _LIMITS}
            shorter = same_code and then != now
            if shorter and then | {key: now.get(key) for key in _LIMITS} == now:
                told = ", ".join(f"{key} {value}" for key, value in lengths.items() if value)
                return f"; {run.path} differs only in its length ({told}): extend it with {take}"
            if run.unfinished and not run.locked:
                other = _differences(then, now) + ([] if same_code else ["the code"])
                return (
                    f"; {run.path} of the same name is unfinished ({run.status}) and differs in "
                    f"{', '.join(other) or 'what is not recorded'}: go on with it with {take}"
                )
        return ""

    # a path

    def _at(self, path: Path) -> Plan:
        """The run of a checkpoint file, or of a run's directory."""
        if not path.exists():
            raise ResumeError(f"resume={str(path)!r}: there is nothing at this path")
        directory = path if path.is_dir() else path.parent.parent
        checkpoint = "latest" if path.is_dir() else str(path)
        checkpoints = directory / self.start.checkpoint_dir_name
        reason = damage(directory, checkpoints if path.is_dir() else path.parent)
        if reason is not None and ids_in(directory.name) and not _is_other_version(reason):
            return self._rebuilt(directory, checkpoint, reason)
        try:
            run = FoundRun(directory, RunFile.read(RunPaths(directory).run_json).data)
            return _continue(run, checkpoint)
        except (RunDirectoryError, KeyError) as error:
            why = error.strerror if isinstance(error, RunDirectoryError) else f"it has no {error}"
            raise ResumeError(
                f"resume={str(path)!r} is not in the directory of a run ({why}); "
                "to start a new run from it, use AccelerateRunner.from_checkpoint"
            ) from error

    def _rebuilt(self, folder: Path, checkpoint: str, reason: str) -> Plan:
        """The plan for a run without a usable run.json, whose ids stand elsewhere too."""
        folder = Path(os.path.realpath(folder))
        file = RunPaths(folder).run_json
        ids, source = self._ids_elsewhere(folder)
        if ids is None:
            raise ResumeError(
                f"the run in {folder} is damaged: {file.name}: {reason}; its ids cannot be rebuilt "
                f"({source}). Put {file} back from a copy, take its checkpoint with "
                "AccelerateRunner.from_checkpoint, or move the directory away"
            )
        message = (
            f"{file} is damaged ({reason}): it is written anew with the ids from {source}, and the "
            f"old one is kept as {file.name}.damaged; going on in {folder}"
        )
        path = str(folder)
        return Plan(path, *ids, checkpoint=checkpoint, message=message, rebuilt=True)

    def _ids_elsewhere(self, folder: Path) -> tuple[tuple[str, str, str] | None, str]:
        """uuid, experiment_uuid and run_uuid of a run, and where they stand, or why nowhere."""
        short = ids_in(folder.name)
        own = (self.start.experiment_uuid, self.start.run_uuid)
        uuid = recorded_run(folder)
        if uuid and short == (own[0].hex[:8], own[1].hex[:8], uuid.hex[:8]):
            return (str(uuid), str(own[0]), str(own[1])), "its lock and its name"
        if self.start.identify is None:
            return None, "its lock file does not say which run it is"
        try:
            config = self.start.identify(folder / self.start.checkpoint_dir_name)
            found = tuple(UUID(str(config[k])) for k in ("uuid", "experiment_uuid", "run_uuid"))
        except (DanLingError, OSError, KeyError, ValueError, TypeError) as error:
            return None, f"{type(error).__name__}: {error}"
        if short and (found[1].hex[:8], found[2].hex[:8], found[0].hex[:8]) != short:
            return None, "those in its newest checkpoint are of another run"
        return (str(found[0]), str(found[1]), str(found[2])), "its newest checkpoint"

    # all of them

    def _fresh(self, message: str = "") -> Plan:
        start = self.start
        ids = start.experiment_uuid, start.run_uuid
        path, uuid = claim(start.project_root, start.name, ids[0].hex, ids[1].hex)
        return Plan(str(path), str(uuid), str(ids[0]), str(ids[1]), message=message)

    def _acquire(self, plan: Plan) -> None:
        """Lock the directory, unless the decision for it has done so."""
        if self.lock is None:
            failpoint("run.before_lock")
            lock = DirectoryLock(plan.path, run=plan.uuid)
            lock.acquire()
            self.lock = lock
            failpoint("run.after_lock")

    def _give_up(self) -> None:
        if self.lock is not None:
            self.lock.release(undo=True)
            self.lock = None


def _continue(run: FoundRun, checkpoint: str, reason: str = "", doubt: str = "") -> Plan:
    return Plan(
        path=os.path.realpath(run.path),  # as of a new run: it must survive a chdir
        uuid=str(run.data["uuid"]),
        experiment_uuid=str(run.data["experiment_uuid"]),
        run_uuid=str(run.data["run_uuid"]),
        checkpoint=checkpoint,
        message=f"{reason}going on in {run.path} ({run.status})" + (f"; {doubt}" if doubt else ""),
        doubt=doubt,
    )


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it stands in run.json, where its secrets are masked."""
    values: dict[str, Any] = mask_values(to_jsonable(config))
    return values


def _is_foreign(folder: Path) -> bool:
    """Whether a directory belongs to another user, where the system knows users by number."""
    return hasattr(os, "geteuid") and os.stat(folder).st_uid != os.geteuid()


def _foreign_message(folder: Path) -> str:
    return (
        f"resume='auto': {folder} is an unfinished run of this code and configuration, but belongs "
        f"to the user {_user(os.stat(folder).st_uid)} and not to {_user(os.geteuid())}: go on with "
        f"it with resume={str(folder)!r}, or start a new run with resume=False"
    )


def _user(number: int) -> str:
    try:
        import pwd

        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except (ImportError, KeyError):
        return f"with the uid {number}"


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The values that differ, by dotted key, with the old and the new one."""
    found: list[str] = []
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} ({old!r} then, {new!r} now)")
    return found[:5]


def _is_other_version(reason: str) -> bool:
    """Whether run.json is whole, and this DanLing is too old for it."""
    return reason.startswith("written by a later DanLing")
