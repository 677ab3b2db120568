"""What a runner shows of its identity and its directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from danling.identity.code import Code
from danling.run.run import RunOnDisk

if TYPE_CHECKING:
    from danling.checkpoint.store import CheckpointStore
    from danling.run.directory import RunPaths

__all__ = ["Owned"]


class Owned:
    """What a runner shows of its identity and its directory."""

    run: RunOnDisk
    _store: CheckpointStore | None = None

    @property
    def code(self) -> Code:
        """The code that runs, as far as it could be found out."""
        return self.run.code

    @property
    def experiment_uuid(self) -> UUID:
        """Identity of the code: of the commit, and of the exact working tree when that is dirty."""
        return self.run.experiment_uuid

    @property
    def experiment_id(self) -> str:
        return self.experiment_uuid.hex

    @property
    def run_uuid(self) -> UUID:
        """Identity of code and configuration: the same on every machine and in every process."""
        return self.run.run_uuid

    @property
    def run_id(self) -> str:
        return self.run_uuid.hex

    @property
    def uuid(self) -> UUID:
        """Random identity of this run, drawn when its directory is claimed."""
        return self.run.uuid

    @property
    def name(self) -> str:
        """Name of the run: `{experiment_name}-{run_name}`."""
        return self.run.name

    @property
    def id(self) -> str:
        """Short form of all three: `{experiment_id:.8}-{run_id:.8}-{uuid:.8}`."""
        return self.run.id

    @property
    def paths(self) -> RunPaths:
        """Where each file of the run is.

        Raises:
            RunError: No directory was claimed.
        """
        return self.run.paths

    @property
    def has_dir(self) -> bool:
        """Whether the run has a directory."""
        return self.run.claimed

    @property
    def dir(self) -> Path:
        return self.paths.path

    @property
    def checkpoint_dir(self) -> Path:
        return self.paths.checkpoints

    @property
    def log_path(self) -> Path:
        return self.paths.log

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoint files of the run."""
        from danling.checkpoint.store import CheckpointStore

        if self._store is None:
            self._store = CheckpointStore(self.paths.checkpoints, run=str(self.uuid))
        return self._store

    def claim_directory(self) -> Path:
        """Make a directory, or take that of the run to resume; what `RunDirectory` calls."""
        return self.run.claim()

    def resumption(self) -> tuple[str | None, str]:
        """Name or path of the checkpoint to go on from, and a line on why it is this run."""
        return self.run.checkpoint, self.run.message

    def release_directory(self) -> None:
        """Let other processes work in the directory again."""
        self.run.release()
