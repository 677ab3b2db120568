"""The directory of a checkpoint of which each process writes its part.

    checkpoints/
      latest.pth               the head: everything but the tensors of which processes have parts
      shards-1200-5f0c9a2e/    their files, of one commit and all its names

A head names its directory, and the size and SHA-256 of each file in it. The files are durable and
hashed before the head is committed, and go when no head names them any more: so the names, and what
a crash may leave behind, are those of a checkpoint of one file.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from danling.errors import CheckpointError
from danling.files import durable, filesystem
from danling.files.failpoints import failpoint

if TYPE_CHECKING:
    from danling.distributed.world import World

__all__ = [
    "NOT_WRITTEN",
    "Manifest",
    "ShardedTensors",
    "Written",
    "damage",
    "directories",
    "directory_of",
    "failure",
    "finish",
    "new_directory",
    "remove",
    "seal",
    "total",
]


Files = dict[str, tuple[int, str]]
Manifest = Mapping[str, Any]
"""`{"directory": "shards-1200-5f0c9a2e", "files": {"__0_0.distcp": [size, sha256]}}`"""

NOT_WRITTEN = "the shards of a checkpoint were not written"

_DIRECTORY = re.compile(r"shards-\d+-[0-9a-f]{8}", re.ASCII)
_DAMAGE = frozenset(
    {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ESPIPE, errno.EIO}
)
_THREADS = 8  # hashing is done by the processor, and leaves the GIL alone
_logger = logging.getLogger(__name__)


class Written(dict[str, tuple[int, str]]):
    """Files that a process has written, each with its size and the SHA-256 of what was written."""


class ShardedTensors(Protocol):
    """The tensors of a checkpoint that are spread over processes: each writes its part.

    Attributes:
        can_wait: Whether `copied` gives parts that a thread may write while training goes on.
    """

    can_wait: bool

    def write(self, directory: Path, world: World) -> Collection[str]:
        """Write the part of this process; returns its files. A collective.

        They are `Written` where they need not be read again to be known.
        """

    def copied(self) -> ShardedTensors:
        """A copy in memory of the host that training does not change."""


def new_directory(checkpoints: Path, global_step: int) -> Path:
    """Make a directory for the shards of one commit; it lasts when this returns."""
    directory = checkpoints / f"shards-{global_step}-{secrets.token_hex(4)}"
    filesystem.make_directory(directory)
    durable.fsync_directory(checkpoints)
    failpoint("shards.after_directory")
    return directory


def directories(checkpoints: Path) -> set[str]:
    """The names of all directories of shards that are there."""
    if not checkpoints.is_dir():
        return set()
    with os.scandir(checkpoints) as found:
        return {entry.name for entry in found if _DIRECTORY.fullmatch(entry.name)}


def directory_of(head: Path, manifest: Manifest) -> Path:
    """The directory of the shards of a head: beside it, wherever it was moved.

    Raises:
        ValueError: The manifest names something else.
    """
    name = str(manifest["directory"])
    if not _DIRECTORY.fullmatch(name):
        raise ValueError(f"{name!r} is no directory of shards")
    return head.resolve().parent / name


def seal(directory: Path, names: Iterable[str]) -> Files:
    """Make the files that a process has written durable; returns size and SHA-256 of each.

    Args:
        directory: The directory of the shards.
        names: The result of `ShardedTensors.write`: files of which nothing is known are read.

    Raises:
        CheckpointError: The disk refuses.
    """
    known = names if isinstance(names, Written) else Written()
    sealed = {}
    with _translated(directory):
        failpoint("shards.after_write")
        for name in names:
            with open(directory / name, "r+b", buffering=0) as file:
                sealed[name] = known.get(name) or _digest(file)
                durable.fsync_file(file.fileno(), directory)
    return sealed


def finish(directory: Path, sealed: Iterable[Files]) -> Manifest:
    """The entry for the head, when all processes have sealed what they have written.

    Raises:
        CheckpointError: This process does not see what another one has written, or the disk
            refuses.
    """
    files = {name: found for part in sealed for name, found in part.items()}
    for name, (size, _) in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(
                f"{path} was written by another process and is not seen by the main one: "
                "project_root must be on storage that all machines share"
            )
    with _translated(directory):
        durable.fsync_directory(directory)
        failpoint("shards.after_seal")
    return {"directory": directory.name, "files": files}


def total(manifest: Manifest | None) -> int:
    """The bytes of all shards."""
    return sum(size for size, _ in manifest["files"].values()) if manifest is not None else 0


def damage(directory: Path, manifest: Manifest) -> str | None:
    """The fault of the shards of a head, or None; reads all of them.

    Raises:
        OSError: A shard cannot be opened now, which says nothing about it.
    """
    if directory.is_symlink() or not directory.is_dir():
        return f"its shards are gone: there is no {directory.name} beside it"
    files = manifest["files"]
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"it names the shard {name!r}, outside of {directory.name}"

    def check(name: str) -> str | None:
        try:
            with open(directory / name, "rb", buffering=0, opener=_at_once) as file:
                found = _digest(file)
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            return f"its shard {directory.name}/{name} cannot be read: {error.strerror}"
        if found != tuple(files[name]):
            return f"its shard {directory.name}/{name} has another content than was written"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return next(filter(None, pool.map(check, files)), None)


def remove(directory: Path) -> bool:
    """Remove shards that no head names; what cannot be removed is a warning."""
    failpoint("shards.before_remove")
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:  # somebody else did
        return False
    except OSError as error:
        _logger.warning("%s cannot be removed (%s): remove it yourself", directory, error.strerror)
        return False
    return True


def failure(what: str, directory: Path, cause: BaseException) -> CheckpointError:
    """The error that says what could not be done with the shards in a directory, and why."""
    number, reason = getattr(cause, "errno", None), getattr(cause, "strerror", None)
    message = f"{what}: {reason or str(cause) or repr(cause)}"
    if number is None:
        return CheckpointError(f"{message} ({directory})")
    return CheckpointError(number, message, str(directory))


@contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failure(NOT_WRITTEN, directory, error) from error


def _digest(file: FileIO) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return file.tell(), digest


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: the open of a pipe would wait for its writer for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
