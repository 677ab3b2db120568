"""The newest valid checkpoint of a directory, past those that are damaged."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from danling import filesystem
from danling.catalog import Catalog
from danling.errors import CheckpointError
from danling.validation import DamagedCheckpointError, ForeignCheckpointError, read_checkpoint

__all__ = ["load_newest"]

_Loaded = tuple[dict[str, Any], Path]
_Read = Callable[[Path], dict[str, Any]]

_LISTINGS = 5  # tries, where a process that writes here removes each file before it is opened

_logger = logging.getLogger(__name__)


def load_newest(catalog: Catalog, directory: Path, run: str | None, whole: bool = True) -> _Loaded:
    """Loads the newest valid checkpoint; what is damaged is renamed and reported.

    Newest is the one with the highest serial number *in the file*: neither its time, which copying
    changes, nor its step, which is lower again after a run went back to `best`. A valid file that
    something else saved is the newest if it is `latest.pth`, else the last resort.

    Raises:
        CheckpointError: None is valid, a file cannot be opened (which says nothing about it, so
            that falling back would lose work), or a newer version wrote it.
    """
    read = partial(read_checkpoint, run=run, whole=whole)
    for _ in range(_LISTINGS):
        causes: list[str] = []
        vanished: list[Path] = []
        loaded = _first_valid(catalog, read, causes, vanished)
        if loaded is not None:
            return loaded
        if not vanished:
            break
    raise _nothing_valid(directory, causes)


def _first_valid(
    catalog: Catalog, read: _Read, causes: list[str], vanished: list[Path]
) -> _Loaded | None:
    last_resort: _Loaded | None = None
    sealed = {entry.path for entry in catalog.entries()}
    for paths in _contents(catalog):
        loaded = _attempt(paths, read, causes, vanished)
        if loaded is None:
            continue
        if paths[0] in sealed or paths[0].stem == "latest":
            return loaded
        last_resort = last_resort or loaded
    return last_resort


def _contents(catalog: Catalog) -> list[list[Path]]:
    """The files, newest first, each with all its names; those that lost their end come first."""
    entries = [entry.path for entry in catalog.entries()]
    suspicious = [path for path in catalog.files().values() if path not in entries]
    suspicious.sort(key=lambda path: path.stem != "latest")
    names: dict[tuple[int, int], list[Path]] = {}
    for path in suspicious + entries:
        with suppress(FileNotFoundError):  # rotated away by who writes here
            status = os.lstat(path)
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return list(names.values())


def _attempt(
    paths: list[Path], read: _Read, causes: list[str], vanished: list[Path]
) -> _Loaded | None:
    path = paths[0]
    try:
        if path.is_symlink():
            raise DamagedCheckpointError(f"{path} is a symbolic link")
        return read(path), path
    except ForeignCheckpointError as error:
        causes.append(str(error))
        _logger.warning("%s: skipped", error)
    except CheckpointError as error:
        if error.errno == errno.ENOENT:
            vanished.append(path)
            return None
        if not isinstance(error, DamagedCheckpointError) and error.errno != errno.EIO:
            raise
        causes.append(f"{error}: {', '.join(_set_aside(path) for path in paths)}")
        _logger.warning("%s", causes[-1])
    return None


def _set_aside(path: Path) -> str:
    """Renames what is damaged, so that it stays for who wants to look and is not tried again."""
    number = 1
    while os.path.lexists(target := path.with_name(f"{path.name}.corrupt-{number}")):
        number += 1
    try:
        filesystem.replace(path, target)
    except OSError as error:
        return f"{path.name} cannot be renamed ({error.strerror})"
    return f"{path.name} renamed to {target.name}"


def _nothing_valid(directory: Path, causes: list[str]) -> CheckpointError:
    aside = sorted(path.name for path in directory.glob("*.corrupt-*"))
    if not causes and not aside:
        message = "there is no checkpoint in the directory"
        return CheckpointError(errno.ENOENT, message, str(directory))
    found = [*causes, *(f"{name} was found damaged before" for name in aside if not causes)]
    return CheckpointError(
        f"no valid checkpoint is left in {directory}:\n  "
        + "\n  ".join(found)
        + "\nput a copy of one there, or move the directory away to start from the beginning"
    )
