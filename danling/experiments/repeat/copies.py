"""Copies of code, made by `rerun`, `resume` and `sweep`, that nothing needs any more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danling.errors import RunDirectoryError
from danling.experiments.reading import read_json
from danling.experiments.repeat.code import CODE_FOLDER, git
from danling.experiments.stored import StoredRun
from danling.identity.git import GitError, Repository

__all__ = ["CodeCopy", "unused_copies"]


_SWEEPS = ".danling/sweeps"
_SECONDS = 60.0


@dataclass(frozen=True)
class CodeCopy:
    """A folder with the code of a run or a sweep."""

    path: Path
    size: int
    """Bytes of its files."""

    def remove(self) -> None:
        """Remove it, from the worktrees of its repository too.

        Raises:
            RunDirectoryError: The copy cannot be removed.
        """
        if (self.path / ".git").is_file():
            with suppress(GitError):
                repository = Repository(self.path, _SECONDS)
                git(repository, "worktree", "remove", "--force", str(self.path.absolute()))
        try:
            if self.path.exists():  # a plain copy, or its repository is gone
                shutil.rmtree(self.path)
        except OSError as error:
            reason = f"the copy of the code cannot be removed: {error.strerror}"
            raise RunDirectoryError(error.errno, reason, str(self.path)) from error


def unused_copies(root: Path, runs: Sequence[StoredRun]) -> list[CodeCopy]:
    """The copies of code below the folder of the runs that nothing needs, the oldest first.

    One is needed while a run that has not ended well was started in it, and while a sweep that has
    begun with it has something left to do. What is removed is rebuilt when it is asked for again.
    """
    folder = root.resolve() / CODE_FOLDER
    try:
        copies = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []
    needed = {path for run in runs if not run.has_ended_well for path in _scripts(run)}
    needed |= set(_of_open_sweeps(root.resolve(), runs))
    unused = [copy for copy in copies if not any(path.is_relative_to(copy) for path in needed)]
    return [CodeCopy(path, _size(path)) for path in sorted(unused, key=lambda p: p.stat().st_mtime)]


def _scripts(run: StoredRun) -> Iterator[Path]:
    """The files and folders that the launches of a run have named."""
    for launch in run.launches:
        cwd = str(launch.get("cwd") or "/")
        argv: Any = launch.get("argv")
        yield Path(cwd)
        for word in argv if isinstance(argv, list) else []:
            yield Path(os.path.normpath(os.path.join(cwd, str(word))))


def _of_open_sweeps(root: Path, runs: Sequence[StoredRun]) -> Iterator[Path]:
    """The scripts of sweeps that have fewer runs that ended well than configurations."""
    for state in root.glob(f"{_SWEEPS}/*/sweep.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = read_json(state)
            script, count = root / str(content["script"]), len(content["jobs"])
            done = sum(run.has_ended_well and script in set(_scripts(run)) for run in runs)
            if done < count or not count:
                yield script


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
