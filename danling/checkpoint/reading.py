"""Reads a checkpoint file, and nothing that is not a whole and safe one.

In this order: a regular file, the structure of the archive, its digest (or the checksums of its
records, where something else wrote it), `torch.load(weights_only=True)`, the format, the run. The
file is opened once, so that what was checked is what is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from danling.checkpoint.encoding import decode
from danling.checkpoint.sharded import deepspeed
from danling.checkpoint.sharded.shards import damage, directory_of
from danling.checkpoint.trailer import Trailer, is_unsealed, read_trailer
from danling.distributed.world import World
from danling.errors import CheckpointError

__all__ = [
    "FORMAT",
    "DamagedCheckpointError",
    "ForeignCheckpointError",
    "is_intact",
    "read_checkpoint",
    "read_together",
    "trailer_of",
]


FORMAT = 1
"""Version of the layout of a checkpoint; a higher one than this is refused."""

_CHUNK = 1 << 20
_logger = logging.getLogger(__name__)


class DamagedCheckpointError(CheckpointError):
    """The file is not a whole checkpoint; whoever falls back to an older one sets it aside."""


class ForeignCheckpointError(CheckpointError):
    """The file is whole, but belongs to another run."""


def read_checkpoint(
    path: str | os.PathLike[str], *, run: str | None = None, whole: bool = True
) -> dict[str, Any]:
    """Reads one checkpoint, checked from the first byte to the last, onto the CPU.

    Args:
        path: The file; a symbolic link is followed.
        run: uuid of the run that it must belong to; any if None.
        whole: Whether tensors that are in shards are read too: else they have no data (`meta`).

    Raises:
        CheckpointError: It cannot be read, is damaged, is not a checkpoint of DanLing, was written
            by a newer version, or belongs to another run. The message has the path and the cause.

    Example:
        >>> from danling.checkpoint import CheckpointStore
        >>> store = CheckpointStore(getfixture("tmp_path") / "checkpoints")
        >>> path = store.commit({"model": {}}, ["latest"], global_step=3, epoch=1)
        >>> read_checkpoint(path)["model"]
        {}
    """
    path = Path(path)
    with _opened(path) as file:
        trailer, size = read_trailer(file)
        _check_archive(file, path)
        if trailer is not None:
            _check_digest(file, size, trailer, path)
        elif is_unsealed(file):
            _check_records(file, path)
        else:
            raise DamagedCheckpointError(f"{path} is damaged: its end is missing or was changed")
        loaded = _load(file, path)
        _check_run(loaded, trailer, run, path)
        if "shards" in loaded:
            directory = _check_shards(file, loaded["shards"], path)
            if whole and "engine" in loaded:
                loaded = deepspeed.read(None, loaded, directory, World())
            elif whole:
                from danling.checkpoint.sharded.dcp import read

                loaded = read(loaded, directory)
    return loaded


def is_intact(path: Path) -> bool:
    """Whether a file has a trailer and is byte for byte what was written."""
    try:
        with _opened(path) as file:
            trailer, size = read_trailer(file)
            if trailer is not None:
                _check_digest(file, size, trailer, path)
            return trailer is not None
    except CheckpointError:
        return False


def trailer_of(path: Path) -> Trailer | None:
    """What a file says about itself, without checking the rest of it; None if it says nothing.

    Raises:
        CheckpointError: It cannot be opened.
    """
    with _opened(path) as file:
        return read_trailer(file)[0]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        # without O_NONBLOCK the open of a pipe waits for its writer, for ever
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedCheckpointError(f"{path} is not a regular file")
            if status.st_size == 0:
                raise DamagedCheckpointError(f"{path} is empty")
            yield file
    except CheckpointError:
        raise
    except IsADirectoryError:
        raise DamagedCheckpointError(f"{path} is a directory, not a checkpoint file") from None
    except OSError as error:
        message = f"the checkpoint cannot be read: {error.strerror}"
        raise CheckpointError(error.errno, message, str(path)) from error


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Refuses what is no archive of torch, and one that would unpack to more than it is."""
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise DamagedCheckpointError(f"{path} is not a checkpoint: it is no zip archive of torch")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    size = os.fstat(file.fileno()).st_size
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise DamagedCheckpointError(f"{path} is not a checkpoint: its records are compressed")


def _check_digest(file: BinaryIO, size: int, trailer: Trailer, path: Path) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    file.seek(0)
    while size > 0 and (count := file.readinto(buffer[: min(_CHUNK, size)])):  # type: ignore[attr-defined]  # of a BufferedReader
        digest.update(buffer[:count])
        size -= count
    if digest.hexdigest() != trailer.sha256:
        raise DamagedCheckpointError(f"{path} is damaged: its content has another SHA-256")


def _check_records(file: BinaryIO, path: Path) -> None:
    """Checks the CRC-32 of every record of a file that something else wrote."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            if not any(member.CRC for member in archive.infolist()):
                _logger.warning("%s is unverified: it was saved without checksums", path)
                return
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
    if broken is not None:
        raise DamagedCheckpointError(f"{path} is damaged: record {broken!r} has another CRC-32")


def _check_shards(file: BinaryIO, record: Mapping[str, Any], path: Path) -> Path:
    try:
        directory = directory_of(path, record)
        problem = damage(directory, record)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path} says of its shards what no head does: {error}"
        ) from None
    if problem is not None:
        if not _is_still(file, path):  # the run has gone on, and removed them
            raise CheckpointError(errno.ENOENT, "the checkpoint was replaced", str(path))
        raise DamagedCheckpointError(f"{path} is damaged: {problem}")
    return directory


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _load(file: BinaryIO, path: Path) -> dict[str, Any]:
    file.seek(0)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        _refuse_other_formats(loaded, path)
        _check_format(loaded, path)
        decoded: dict[str, Any] = decode(loaded)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # torch raises all kinds of errors at bytes that it does not expect
        cause = str(error).strip().partition("\n")[0]
        raise DamagedCheckpointError(
            f"{path} cannot be loaded with weights_only=True ({type(error).__name__}: {cause})"
        ) from error
    return decoded


def _refuse_other_formats(loaded: Any, path: Path) -> None:
    if isinstance(loaded, dict) and isinstance(loaded.get("format"), int):
        return
    if isinstance(loaded, dict) and "pytorch-lightning_version" in loaded:
        what, way_out = "a checkpoint of Lightning", 'its weights are under "state_dict"'
    elif isinstance(loaded, dict) and any(isinstance(v, torch.Tensor) for v in loaded.values()):
        what, way_out = "the weights of a model alone", "they can start a run, not continue one"
    else:
        what, way_out = "no checkpoint of DanLing", 'it has no "format"'
    raise DamagedCheckpointError(
        f"{path} is {what}; {way_out}: read it with torch.load and model.load_state_dict"
    )


def _check_format(loaded: Mapping[str, Any], path: Path) -> None:
    version = loaded["format"]
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, written by a newer DanLing; this one reads up to "
            f"{FORMAT}: upgrade it, or continue the run where it was started"
        )
    if version < 1:
        raise DamagedCheckpointError(f"{path} has format {version}, which never existed")


def _check_run(
    loaded: Mapping[str, Any], trailer: Trailer | None, run: str | None, path: Path
) -> None:
    recorded = loaded.get("run")
    found = recorded.get("uuid") if isinstance(recorded, dict) else None
    found = found or (trailer.run if trailer is not None else None)
    if run is not None and found is not None and str(found) != run:
        raise ForeignCheckpointError(f"{path} belongs to the run {found}, not to {run}")


SENT = 1 << 26
"""Bytes of a file up to which its content is sent to the other processes."""

Chosen = tuple[dict[str, Any], Path]


def read_together(world: World, choose: Callable[[], Chosen]) -> Chosen:
    """Let the main process choose a file, check and read it, and give all the same content.

    What is in shards is checked, and not read.

    A large file is not sent: each process reads it by itself, unless one of them cannot see it, or
    sees another, as it happens on shared file systems.

    Args:
        world: The processes; each must call this.
        choose: Gives a checkpoint and its file; called on the main process only.

    Raises:
        CheckpointError: What `choose` raises, on every process.

    Example:
        >>> from danling.checkpoint import CheckpointStore
        >>> store = CheckpointStore(getfixture("tmp_path") / "checkpoints")
        >>> _ = store.commit({"model": {}}, ["latest"], global_step=3, epoch=1)
        >>> checkpoint, path = read_together(World(), store.load)
        >>> path.name, checkpoint["model"]
        ('latest.pth', {})
    """
    chosen: list[Chosen] = []

    def describe() -> tuple[Path, str | None, bool]:
        chosen.append(choose())
        path = chosen[0][1]
        return path, digest_of(path), path.stat().st_size <= SENT

    path, digest, is_small = world.on_main(describe)
    if not chosen and not is_small:
        with suppress(CheckpointError):
            if digest == digest_of(path):
                chosen.append((read_checkpoint(path, whole=False), path))
    if is_small or world.maximum([not chosen])[0]:
        content: Chosen = world.broadcast(chosen[0] if chosen else ({}, path))
        return content
    return chosen[0]


def digest_of(path: Path) -> str | None:
    """Of the content of a file, as it says itself."""
    trailer = trailer_of(path)
    return None if trailer is None else trailer.sha256
