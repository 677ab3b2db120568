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
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from danling.checkpoint import archive
from danling.checkpoint.background import in_memory
from danling.checkpoint.encoding import TAG, decode
from danling.checkpoint.sharded import deepspeed
from danling.checkpoint.sharded.shards import damage, directory_of, total
from danling.checkpoint.trailer import Trailer, is_unsealed, read_trailer
from danling.distributed.world import World
from danling.errors import CheckpointError
from danling.files import filesystem

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

SENT = 1 << 26
"""Bytes of a file up to which its content is sent to the other processes, and not mapped."""

_MAPS = os.name == "posix"  # elsewhere a file that is mapped cannot be replaced
_CHUNK = 1 << 20
_NO_FORMAT = 1_000_000
_EXTRA = "_extra_state"  # of a module, which keeps what it is given
_SMALL = 1 << 26  # bytes that any file may ask for
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
        whole: Whether everything is brought into memory. Else tensors that are in shards have no
            data (`meta`), and the weights in a large file stay there, mapped, until they are used:
            for who copies them into a model, and then forgets them.

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
    return _read(Path(path), run, whole)


def _read(
    path: Path, run: str | None = None, whole: bool = False, checked: Seen | None = None
) -> dict[str, Any]:
    """Read like `read_checkpoint`; what another process has `checked` is not hashed again."""
    with _opened(path) as file:
        trailer, size = read_trailer(file)
        is_checked = trailer is not None and checked is not None and checked == _seen(file)
        if (problem := archive.problem(file)) is not None:
            raise DamagedCheckpointError(f"{path} {problem}")
        if is_checked:
            _logger.debug("%s was checked by the main process", path)
        elif trailer is not None:
            _check_digest(file, size, trailer, path)
        elif is_unsealed(file):
            _check_records(file, path)
        else:
            raise DamagedCheckpointError(f"{path} is damaged: its end is missing or was changed")
        loaded = _load(file, path, mapped=not whole and size > SENT and _MAPS)
        _check_run(loaded, trailer, run, path)
        if "shards" in loaded:
            directory = None if is_checked else _check_shards(file, loaded["shards"], path)
            if whole and directory is not None:
                loaded = _with_shards(loaded, directory, path)
    return loaded


def _seen(file: BufferedReader) -> Seen:
    """The values by which two processes see whether they have the same file of one machine open."""
    status = os.fstat(file.fileno())
    return (
        socket.gethostname(),
        *(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),
    )


def _with_shards(loaded: dict[str, Any], directory: Path, path: Path) -> dict[str, Any]:
    try:
        if "engine" in loaded:
            return deepspeed.read(None, loaded, directory, World())
        from danling.checkpoint.sharded.dcp import read

        return read(loaded, directory)
    except CheckpointError as error:
        if error.errno is not None or isinstance(error.__cause__, ImportError):
            raise
        # their digests are right, so that it is not the disk that they cannot be read from
        raise DamagedCheckpointError(f"{path} cannot be read with its shards: {error}") from error


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
    """Read the trailer of a file without checking the rest of it; None if it has none.

    Raises:
        CheckpointError: It cannot be opened.
    """
    with _opened(path) as file:
        return read_trailer(file)[0]


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with filesystem.open_existing(path) as file:
            status = os.fstat(file.fileno())
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


def _check_digest(file: BufferedReader, size: int, trailer: Trailer, path: Path) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    file.seek(0)
    while size > 0 and (count := file.readinto(buffer[: min(_CHUNK, size)])):
        digest.update(buffer[:count])
        size -= count
    if digest.hexdigest() != trailer.sha256:
        raise DamagedCheckpointError(f"{path} is damaged: its content has another SHA-256")


def _check_records(file: BufferedReader, path: Path) -> None:
    """Checks the CRC-32 of every record of a file that something else wrote."""
    if not archive.has_checksums(file):
        _logger.warning("%s is unverified: it was saved without checksums", path)
    elif (problem := archive.wrong_record(file)) is not None:
        raise DamagedCheckpointError(f"{path} is damaged: {problem}")


def _check_shards(file: BufferedReader, manifest: Mapping[str, Any], path: Path) -> Path:
    try:
        directory = directory_of(path, manifest)
        problem = damage(directory, manifest)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path} has a manifest of its shards that is none: {error}"
        ) from None
    if problem is not None:
        if not _is_still(file, path):  # the run has gone on, and removed them
            raise CheckpointError(errno.ENOENT, "the checkpoint was replaced", str(path))
        raise DamagedCheckpointError(f"{path} is damaged: {problem}")
    return directory


def _is_still(file: BufferedReader, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _load(file: BufferedReader, path: Path, *, mapped: bool) -> dict[str, Any]:
    try:
        loaded = _mapped(file, path) if mapped else None
        if loaded is None:
            file.seek(0)
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        _refuse_other_formats(loaded, path)
        _check_format(loaded, path)
        _check_tensors(loaded, os.fstat(file.fileno()).st_size)
        decoded: dict[str, Any] = decode(loaded)
    except CheckpointError:
        raise
    except MemoryError as error:
        if os.fstat(file.fileno()).st_size < _SMALL:
            raise DamagedCheckpointError(f"{path} asks for more memory than there is") from error
        raise CheckpointError(errno.ENOMEM, "there is no memory for it", str(path)) from error
    except OSError:
        raise
    except Exception as error:  # torch raises all kinds of errors at bytes that it does not expect
        cause = str(error).strip().partition("\n")[0]
        raise DamagedCheckpointError(
            f"{path} cannot be loaded with weights_only=True ({type(error).__name__}: {cause})"
        ) from error
    return decoded


def _mapped(file: BufferedReader, path: Path) -> Any:
    """The content of a file whose weights stay in it; None where it cannot be mapped.

    All else is in memory: optimizers and callbacks keep the very tensors that they are given.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError):  # some file systems map nothing; if it is damaged, read tells
        return None
    if not isinstance(loaded, dict) or not _is_still(file, path):  # another one is there now
        return None
    rest = in_memory({key: value for key, value in loaded.items() if key != "model"})
    model = loaded.get("model")
    return loaded | rest | ({"model": in_memory(model, _weights(model))} if model else {})


def _weights(model: Any) -> list[torch.Tensor]:
    """The tensors that modules load by a copy, without the states that they take as they are."""
    found: list[torch.Tensor] = []
    pending = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict) and TAG not in value:
            kept = (item for key, item in value.items() if not str(key).endswith(_EXTRA))
            pending += kept
    return found


def _check_tensors(loaded: Mapping[str, Any], size: int) -> None:
    """Refuses tensors that are larger than what is in the file, but for those that are in shards.

    Raises:
        ValueError: One of them would take memory that the file does not account for.
    """
    seen: set[int] = set()
    pending: list[Any] = [loaded]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
            allowed = _sharded_bytes(loaded) if value.is_meta else max(size, _SMALL)
            if value.nbytes > allowed:
                what = "is in no shard" if value.is_meta else "is larger than the file"
                raise ValueError(f"a tensor of {value.nbytes} bytes {what}")


def _sharded_bytes(loaded: Mapping[str, Any]) -> int:
    """The bytes that the shards of a checkpoint have, of which it is not known yet that they do."""
    if "shards" not in loaded:
        return -1
    # an engine keeps weights in half of the size that their place in the head says
    return 2 * total(loaded["shards"])


def _refuse_other_formats(loaded: Any, path: Path) -> None:
    if isinstance(loaded, dict) and type(loaded.get("format")) is int:
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
    if not 0 < version < _NO_FORMAT:
        raise DamagedCheckpointError(f"{path} has a format that never existed")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, written by a newer DanLing; this one reads up to "
            f"{FORMAT}: upgrade it, or continue the run where it was started"
        )


def _check_run(
    loaded: Mapping[str, Any], trailer: Trailer | None, run: str | None, path: Path
) -> None:
    recorded = loaded.get("run")
    found = recorded.get("uuid") if isinstance(recorded, dict) else None
    found = found or (trailer.run if trailer is not None else None)
    if found is not None and not isinstance(found, str):
        raise DamagedCheckpointError(f"{path} names a run that is none")
    if run is not None and found is not None and found != run:
        raise ForeignCheckpointError(f"{path} belongs to the run {found}, not to {run}")


Chosen = tuple[dict[str, Any], Path]
Seen = tuple[str, int, int, int, int]


def read_together(world: World, choose: Callable[[], Chosen]) -> Chosen:
    """Let the main process choose a file, check and read it, and give all the same content.

    What is in shards is checked, and not read.

    A large file is not sent: each process reads it by itself, unless one of them cannot see it, or
    sees another, as it happens on shared file systems. Processes on the machine of the main one
    need not check again what it has checked.

    Args:
        world: The processes; each must call this.
        choose: Gives a checkpoint and its file; called on the main process only.

    Raises:
        CheckpointError: The error that `choose` raises, on every process.

    Example:
        >>> from danling.checkpoint import CheckpointStore
        >>> store = CheckpointStore(getfixture("tmp_path") / "checkpoints")
        >>> _ = store.commit({"model": {}}, ["latest"], global_step=3, epoch=1)
        >>> checkpoint, path = read_together(World(), store.load)
        >>> path.name, checkpoint["model"]
        ('latest.pth', {})
    """
    chosen: list[Chosen] = []

    def describe() -> tuple[Path, str | None, bool, Seen]:
        chosen.append(choose())
        path = chosen[0][1]
        with _opened(path) as file:
            seen = _seen(file)
        return path, digest_of(path), path.stat().st_size <= SENT, seen

    path, digest, is_small, seen = world.on_main(describe)
    if not chosen and not is_small:
        with suppress(CheckpointError):
            if digest == digest_of(path):
                chosen.append((_read(path, checked=seen), path))
    if is_small or world.maximum([not chosen])[0]:
        content: Chosen = world.broadcast(chosen[0] if chosen else ({}, path))
        return content
    return chosen[0]


def digest_of(path: Path) -> str | None:
    """The digest of the content of a file, as its trailer says."""
    trailer = trailer_of(path)
    return None if trailer is None else trailer.sha256
