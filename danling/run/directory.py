"""The directory of a run: the names of its files, and how it is claimed.

This is the only module that knows the names. No file holds an absolute path that is needed to find
another, so a run that was moved or copied works.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from danling.config.files import RUN_CONFIG
from danling.errors import RunDirectoryError
from danling.files.failpoints import failpoint
from danling.identity.ids import run_identifier
from danling.run.lock import LOCK_NAME

if TYPE_CHECKING:
    from danling.config import Config
    from danling.distributed.world import World

__all__ = ["RunPaths", "Scratch", "claim"]


_RUN_NAME = re.compile(r".+(-[0-9a-f]{8}){3}")
_DRAWS = 100  # of a random name, until one is free


class RunPaths:
    """The paths of the files of a run.

    Args:
        path: The directory of the run.
        checkpoint_dir_name: The name of the folder of the checkpoints in it.

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
        self.runner_yaml = self.path / RUN_CONFIG
        self.results = self.path / "results.json"
        self.latest = self.path / "latest.json"
        self.best = self.path / "best.json"
        self.metrics = self.path / "metrics.jsonl"
        self.run_json = self.path / "run.json"
        self.lock = self.path / LOCK_NAME
        self.metadata = self.path / "metadata"
        self.code_patch = self.metadata / "code.patch"
        self.main_program = self.metadata / "main_program.py"
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
        name: The name of the run, from `danling.identity.ids.run_name`.
        experiment_id: The identity of the code.
        run_id: The identity of code and configuration.

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


class Scratch:
    """A folder for the files of a run that keeps nothing and goes on with no other run.

    Args:
        config: The configuration; it is what it was when the folder is removed.
        world: The processes of the run.
    """

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._given = str(config.project_root), config.resume
        self._is_main = world.rank == 0
        self.path: str = world.on_main(lambda: tempfile.mkdtemp(prefix="danling-"))
        config.project_root, config.resume = self.path, False

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._config.project_root, self._config.resume = self._given
        if self._is_main:
            shutil.rmtree(self.path, ignore_errors=True)
