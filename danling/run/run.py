"""Which run this is: its ids, the directory it owns, and the run that it goes on with."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from danling.errors import ResumeError, RunDirectoryError, RunError, RunLockedError
from danling.files.atomic import remove_orphans
from danling.files.failpoints import failpoint
from danling.files.json import to_jsonable
from danling.identity import ids
from danling.identity.code import Code, main_folder, read_code
from danling.run.directory import RunPaths, claim
from danling.run.lock import DirectoryLock, in_use
from danling.run.record import RunFile
from danling.run.search import FoundRun, find_job, find_runs

if TYPE_CHECKING:
    from danling.config import Config
    from danling.distributed.world import World

__all__ = ["Plan", "RunOnDisk"]


LIMITS = ("max_epochs", "max_steps")


@dataclass(frozen=True)
class Plan:
    """What rank 0 decided for all: the directory, and where the run in it goes on from."""

    path: str
    uuid: str
    experiment_uuid: str
    run_uuid: str
    checkpoint: str | None = None
    message: str = ""


class RunOnDisk:
    """A run's identity and its directory, which is claimed when the run opens.

    Args:
        config: The configuration of the run.
        world: The processes of the run.
    """

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self._code: Code | None = None
        self._experiment_uuid: UUID | None = None
        self._run_uuid: UUID | None = None
        self._uuid: UUID | None = None
        self._paths: RunPaths | None = None
        self._lock: DirectoryLock | None = None
        self.checkpoint: str | None = None  # name or path of the one to load when the run opens
        self.message = ""  # on why it is this directory

    # Identity

    @property
    def code(self) -> Code:
        if self._code is None:
            self._code = read_code(main_folder(), exclude=[self._project_root])
        return self._code

    @property
    def experiment_uuid(self) -> UUID:
        if self._experiment_uuid is None:
            self._experiment_uuid = ids.experiment_uuid(self.code)
        return self._experiment_uuid

    @property
    def run_uuid(self) -> UUID:
        if self._run_uuid is None:
            self._run_uuid = ids.run_uuid(self.experiment_uuid, self._config.semantic())
        return self._run_uuid

    @property
    def uuid(self) -> UUID:
        if self._uuid is None:
            self._uuid = self._world.broadcast(uuid4())
        return self._uuid

    @property
    def name(self) -> str:
        return ids.run_name(self._config.experiment_name, self._config.run_name)

    @property
    def _project_root(self) -> Path:
        return Path(self._config.project_root)

    @property
    def id(self) -> str:
        return ids.run_identifier(self.experiment_uuid.hex, self.run_uuid.hex, self.uuid.hex)

    # The directory

    @property
    def claimed(self) -> bool:
        return self._paths is not None

    @property
    def paths(self) -> RunPaths:
        if self._paths is None:
            raise RunError("this run has no directory: RunDirectory makes it when the run opens")
        return self._paths

    def claim(self) -> Path:
        """Claim the directory; a collective."""
        plan = self._world.on_main(self._claim)
        self._experiment_uuid, self._run_uuid = UUID(plan.experiment_uuid), UUID(plan.run_uuid)
        self._uuid = UUID(plan.uuid)
        self._paths = RunPaths(Path(plan.path), self._config.checkpoint_dir_name)
        self.checkpoint, self.message = plan.checkpoint, plan.message
        return self._paths.path

    def release(self) -> None:
        """Unlock the directory; it stays the run's own."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _claim(self) -> Plan:
        plan = self._decide()
        self._acquire(plan)
        for folder in (Path(plan.path), RunPaths(plan.path).metadata):
            remove_orphans(folder)
        return plan

    def _acquire(self, plan: Plan) -> None:
        """Lock the directory, unless the decision for it has done so."""
        if self._lock is None:
            failpoint("run.before_lock")
            lock = DirectoryLock(plan.path, run=plan.uuid)
            lock.acquire()
            self._lock = lock
            failpoint("run.after_lock")

    def _decide(self) -> Plan:
        """Which directory: that of the same job, of the run that is resumed, or a new one."""
        root, resume = self._project_root, self._config.resume
        if self._paths is not None:  # a second train() goes on where the first one ended
            return self._own(self._paths.path, self.uuid)
        if job := find_job(root, run_id=self.run_uuid.hex, name=self.name):
            return self._continue(job, "latest", "restarted by the same job: ")
        if not resume:
            return self._fresh()
        if resume not in (True, "auto", "latest", "best"):
            return self._at(Path(str(resume)))
        if resume in (True, "auto"):
            return self._automatic(root)
        if runs := find_runs(root, self.run_uuid.hex):
            return self._continue(runs[0], str(resume), "")
        raise ResumeError(
            f"resume={resume!r}: there is no run of this code and configuration in {root}; "
            "give the path of a run or of a checkpoint instead"
        )

    def _automatic(self, root: Path) -> Plan:
        if self.code.partial:  # it may be other code than that of a run with the same ids
            return self._fresh(
                "resume='auto': the code could not be read in time, a new run starts"
            )
        busy: list[str] = []
        for run in find_runs(root, self.run_uuid.hex):
            if not run.unfinished:
                continue
            plan = self._continue(run, "latest", "")
            # the newest may be of a process that was killed and is not quite gone: wait a moment
            if not (busy and run.locked) and self._takes(plan):
                return plan
            busy.append(f"{run.path} is {in_use(run.path)}")
        if busy:
            return self._fresh(f"resume='auto': {'; '.join(busy)}: a new run starts")
        return self._fresh(
            f"resume='auto' found no unfinished run of this code and configuration in {root}: "
            f"a new one starts{self._hint_at_shorter(root)}"
        )

    def _takes(self, plan: Plan) -> bool:
        """Lock a run that was found, unless another process works on it or has just ended it."""
        with suppress(RunLockedError):
            self._acquire(plan)
            run = FoundRun(Path(plan.path), RunFile.read(RunPaths(plan.path).run_json).data)
            if run.unfinished:
                return True
            self.release()
        return False

    def _hint_at_shorter(self, root: Path) -> str:
        """How to go on with a run that differs in its length alone."""
        now = to_jsonable(self._config.semantic())
        for run in find_runs(root):
            then = to_jsonable(run.data.get("hash_inputs", {}))
            lengths = {key: then.get(key) for key in LIMITS}
            same_code = run.data.get("experiment_uuid") == str(self.experiment_uuid)
            if same_code and then != now and then | {key: now[key] for key in LIMITS} == now:
                told = ", ".join(f"{key} {value}" for key, value in lengths.items() if value)
                return (
                    f"; {run.path} differs only in its length ({told}): "
                    f"extend it with resume={str(run.path)!r}"
                )
        return ""

    def _fresh(self, message: str = "") -> Plan:
        path, uuid = claim(
            self._project_root, self.name, self.experiment_uuid.hex, self.run_uuid.hex
        )
        return self._own(path, uuid, message)

    def _at(self, path: Path) -> Plan:
        """The run of a checkpoint file, or of a run's directory."""
        if not path.exists():
            raise ResumeError(f"resume={str(path)!r}: there is nothing at this path")
        directory = path if path.is_dir() else path.parent.parent
        try:
            run = FoundRun(directory, RunFile.read(RunPaths(directory).run_json).data)
        except RunDirectoryError as error:
            raise ResumeError(
                f"resume={str(path)!r} is not in the directory of a run ({error.strerror}); "
                "to start a new run from it, use AccelerateRunner.from_checkpoint"
            ) from error
        return self._continue(run, "latest" if path.is_dir() else str(path), "")

    def _continue(self, run: FoundRun, checkpoint: str, reason: str) -> Plan:
        message = f"{reason}going on in {run.path} ({run.status})"
        data = run.data
        return Plan(
            path=os.path.realpath(run.path),  # as of a new run: it must survive a chdir
            uuid=str(data["uuid"]),
            experiment_uuid=str(data["experiment_uuid"]),
            run_uuid=str(data["run_uuid"]),
            checkpoint=checkpoint,
            message=message,
        )

    def _own(self, path: Path, uuid: UUID, message: str = "") -> Plan:
        experiment, run = str(self.experiment_uuid), str(self.run_uuid)
        return Plan(str(path), str(uuid), experiment, run, message=message)
