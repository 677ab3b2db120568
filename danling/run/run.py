"""A run on the disk: its ids, and the directory that is its own while it is open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from danling.errors import RunError
from danling.files.atomic import remove_orphans
from danling.identity import ids
from danling.identity.code import Code, read_code, uncounted_files
from danling.identity.modules import ImportWatch, main_folder, project_folder
from danling.run.choice import Choice, Identify, Plan, Start
from danling.run.directory import RunPaths
from danling.run.lock import DirectoryLock

if TYPE_CHECKING:
    from danling.config import Config
    from danling.distributed.world import World

__all__ = ["RunOnDisk"]


_NOTICE_SECONDS = 2.0  # of reading the code, after which the user is told what takes so long


class RunOnDisk:
    """A run's identity and its directory, which is claimed when the run opens.

    A start takes three steps: `claim` decides for a directory and locks it, `accept` says that the
    run may go on in it, and `release` gives it back. What is not accepted was not changed.

    Args:
        config: The configuration of the run.
        world: The processes of the run.
        identify: Reads the ids of a run from its checkpoints, where run.json is lost.
        watching: The entries of `config.callbacks` that are no part of its identity.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        identify: Identify | None = None,
        watching: Collection[str] = (),
    ) -> None:
        self._config = config
        self._watching = watching
        self._world = world
        self._identify = identify
        self._code: Code | None = None
        self._imports: ImportWatch | None = None
        self._experiment_uuid: UUID | None = None
        self._run_uuid: UUID | None = None
        self._uuid: UUID | None = None
        self._paths: RunPaths | None = None
        self._lock: DirectoryLock | None = None
        self._plan: Plan | None = None
        self.accepted = False
        """Whether the run goes on, or begins, in the directory: files in it may change."""

    # Identity

    @property
    def code(self) -> Code:
        """The code that runs, as it was when it was first asked for."""
        if self._code is None:
            self._imports = ImportWatch()
            exclude, timeout = [self._project_root], float(self._config.code_timeout)
            notice = threading.Timer(_NOTICE_SECONDS, _tell_of_reading, [timeout])
            notice.daemon = True
            notice.start()
            try:
                self._code = read_code(main_folder(), exclude=exclude, timeout=timeout)
            finally:
                notice.cancel()
        return self._code

    def late_imports(self) -> list[str]:
        """The files of the project that were imported since the code was read, and are not in it.

        Each is returned once.
        """
        if self._imports is None or self._code is None:
            return []
        start = main_folder()
        files = self._imports.new_files(project_folder(start))
        return uncounted_files(start, files, self._code, timeout=2.0) if files else []

    @property
    def experiment_uuid(self) -> UUID:
        """Identity of the code."""
        if self._experiment_uuid is None:
            self._experiment_uuid = ids.experiment_uuid(self.code)
        return self._experiment_uuid

    @property
    def run_uuid(self) -> UUID:
        """Identity of code and configuration."""
        if self._run_uuid is None:
            self._run_uuid = ids.run_uuid(self.experiment_uuid, self._semantic())
        return self._run_uuid

    @property
    def uuid(self) -> UUID:
        """Random identity of this run; a collective where no directory was claimed."""
        if self._uuid is None:
            self._uuid = self._world.broadcast(uuid4())
        return self._uuid

    @property
    def name(self) -> str:
        """Name of the run: `{experiment_name}-{run_name}`."""
        return ids.run_name(self._config.experiment_name, self._config.run_name)

    @property
    def id(self) -> str:
        """Short form of the three ids, the end of the directory's name."""
        return ids.run_identifier(self.experiment_uuid.hex, self.run_uuid.hex, self.uuid.hex)

    @property
    def _project_root(self) -> Path:
        return Path(self._config.project_root)

    def _semantic(self) -> dict[str, Any]:
        """The part of the configuration that decides what the run computes."""
        values = self._config.semantic()
        if self._watching:
            kept = {k: v for k, v in values.pop("callbacks").items() if k not in self._watching}
            values |= {"callbacks": kept} if kept else {}
        return values

    # The directory

    @property
    def claimed(self) -> bool:
        """Whether the run has a directory."""
        return self._paths is not None

    @property
    def paths(self) -> RunPaths:
        """The paths of the files of the run.

        Raises:
            RunError: No directory was claimed.
        """
        if self._paths is None:
            raise RunError("this run has no directory: RunDirectory makes it when the run opens")
        return self._paths

    @property
    def checkpoint(self) -> str | None:
        """Name or path of the checkpoint to load when the run opens; None where it begins."""
        return self._plan.checkpoint if self._plan else None

    @property
    def message(self) -> str:
        """Why it is this directory."""
        return self._plan.message if self._plan else ""

    @property
    def doubt(self) -> str:
        """Why the run that is resumed may be another than was meant; empty where nothing is so."""
        return self._plan.doubt if self._plan else ""

    @property
    def rebuilt(self) -> bool:
        """Whether the run.json of the directory was damaged and has to be written anew."""
        return self._plan is not None and self._plan.rebuilt

    def claim(self) -> Path:
        """Decide for a directory and lock it; a collective.

        Raises:
            ResumeError: The run that was asked for is not there, or cannot be taken.
            RunLockedError: Another process works in it.
            RunDirectoryError: It cannot be made or used.
        """
        self.accepted = False
        plan = self._world.on_main(self._claim)
        self._experiment_uuid, self._run_uuid = UUID(plan.experiment_uuid), UUID(plan.run_uuid)
        self._uuid = UUID(plan.uuid)
        self._paths = RunPaths(Path(plan.path), self._config.checkpoint_dir_name)
        self._plan = plan
        if plan.checkpoint is None:
            self.accept()
        return self._paths.path

    def accept(self) -> None:
        """Go on in the directory that was claimed: from now on files in it may change."""
        if not self.accepted and self._lock is not None:
            for folder in (self.paths.path, self.paths.metadata):
                remove_orphans(folder)
        self.accepted = True

    def release(self) -> None:
        """Unlock the directory, which stays the run's own; without `accept`, as it was before."""
        if self._lock is not None:
            self._lock.release(undo=not self.accepted)
            self._lock = None

    def _claim(self) -> Plan:
        if self._paths is not None:  # a second train() goes on where the first one ended
            ids = str(self.uuid), str(self.experiment_uuid), str(self.run_uuid)
            plan = Plan(str(self._paths.path), *ids)
            self._lock = DirectoryLock(plan.path, run=plan.uuid)
            self._lock.acquire()
            return plan
        choice = Choice(self._start())
        try:
            return choice.make()
        finally:
            self._lock = choice.lock

    def _start(self) -> Start:
        return Start(
            project_root=self._project_root,
            checkpoint_dir_name=self._config.checkpoint_dir_name,
            name=self.name,
            code=self.code,
            experiment_uuid=self.experiment_uuid,
            run_uuid=self.run_uuid,
            config=self._semantic(),
            resume=self._config.resume,
            identify=self._identify,
        )


def _tell_of_reading(timeout: float) -> None:
    # no run.log is open yet: a warning reaches the console all the same
    logging.getLogger("danling.run").warning(
        "reading the code that runs takes long: git is slow here; it is waited for up to %g s "
        "(code_timeout)",
        timeout,
    )
