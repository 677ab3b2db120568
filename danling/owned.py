"""What a runner shows of its identity and its directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from danling.identity import Code
from danling.ownership import Ownership

if TYPE_CHECKING:
    from danling.checkpoint import CheckpointStore
    from danling.record import RunPaths

__all__ = ["Owned"]


class Owned:
    """What a runner shows of its identity and its directory."""

    _ownership: Ownership

    @property
    def code(self) -> Code:
        """The code that runs, as far as it could be found out."""
        return self._ownership.code

    @property
    def experiment_uuid(self) -> UUID:
        """Identity of the code: of the commit, and of the exact working tree when that is dirty."""
        return self._ownership.experiment_uuid

    @property
    def experiment_id(self) -> str:
        return self.experiment_uuid.hex

    @property
    def run_uuid(self) -> UUID:
        """Identity of code and configuration: the same on every machine and in every process."""
        return self._ownership.run_uuid

    @property
    def run_id(self) -> str:
        return self.run_uuid.hex

    @property
    def uuid(self) -> UUID:
        """Random identity of this run, drawn when its directory is claimed."""
        return self._ownership.uuid

    @property
    def name(self) -> str:
        """Name of the run: `{experiment_name}-{run_name}`."""
        return self._ownership.name

    @property
    def id(self) -> str:
        """Short form of all three: `{experiment_id:.8}-{run_id:.8}-{uuid:.8}`."""
        return self._ownership.id

    @property
    def paths(self) -> RunPaths:
        """Where each file of the run is.

        Raises:
            RunError: No directory was claimed.
        """
        return self._ownership.paths

    @property
    def has_dir(self) -> bool:
        """Whether the run has a directory."""
        return self._ownership.claimed

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
        return self._ownership.checkpoints

    def claim_directory(self) -> Path:
        """Make a directory, or take that of the run to resume; what `RunDirectory` calls."""
        return self._ownership.claim()

    def resumption(self) -> tuple[str | None, str]:
        """Name or path of the checkpoint to go on from, and a line on why it is this run."""
        return self._ownership.checkpoint, self._ownership.message

    def release_directory(self) -> None:
        """Let other processes work in the directory again."""
        self._ownership.release()
