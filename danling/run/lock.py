"""One process at a time works in a run's directory.

A POSIX record lock on `.lock`: the kernel frees it when its process dies, however it dies, and
forked workers do not inherit it. Where the file system or the system has no such locks, a lease
file that is created exclusively takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

from danling.errors import ConfigError, RunDirectoryError, RunLockedError
from danling.files.json import loads

__all__ = [
    "LOCK_NAME",
    "DirectoryLock",
    "LockHolder",
    "in_use",
    "is_locked",
    "lock_holder",
    "recorded_run",
]


if sys.platform != "win32":
    import fcntl


LOCK_NAME = ".lock"
"""The file that is locked; it stays in the directory."""

_LEASE_NAME = ".lock.lease"
_MAX_PID = 2**31 - 1
_WAIT_SECONDS = 0.5  # for a process that was killed and is not quite gone
_BUSY = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# struct flock, on 64-bit systems
_IS_LINUX = sys.platform == "linux"
_FLOCK = "hhqqi4x" if _IS_LINUX else "qqihh"
_FLOCK_FIELDS = ("type whence start len pid" if _IS_LINUX else "start len pid type whence").split()

# Locks that this process holds, by process, device and inode: it would be granted them again, and
# closing any other descriptor of the file would drop them.
_held: set[tuple[int, int, int]] = set()


@dataclass(frozen=True)
class LockHolder:
    """The process that works in a directory, as far as it is known."""

    host: str = "an unknown host"
    pid: int = 0
    start_time: str = "an unknown time"
    run: str = ""

    @classmethod
    def current(cls, run: str) -> LockHolder:
        """The description of this process as a holder."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), now, run)

    @classmethod
    def read(cls, text: str) -> LockHolder:
        """Read a lock file; a file that says nothing gives the defaults."""
        with contextlib.suppress(ConfigError):
            values, known = loads(text), asdict(cls())
            is_whole = isinstance(values, dict) and all(
                type(values.get(key)) is type(default) for key, default in known.items()
            )
            if is_whole and 0 <= values["pid"] <= _MAX_PID:
                return cls(**{key: values[key] for key in known})
        return cls()

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended: only its own host can tell."""
        if self.host != socket.gethostname() or not self.pid or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class DirectoryLock:
    """The right to write to a directory, from `acquire` to `release` or the end of the process.

    Args:
        directory: The directory of a run.
        run: The id of the run, for those who find the directory locked.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with DirectoryLock(folder, run="1f0c"):
        ...     print(is_locked(folder))
        True
        >>> is_locked(folder)
        False
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str = "") -> None:
        self.directory = Path(directory)
        self.run = run
        self._descriptor: int | None = None
        self._key: tuple[int, int, int] | None = None
        self._lease: str | None = None
        self._before = b""  # what the last holder left in the file
        self._owner: int | None = None  # a forked worker has a copy of this object, not the lock

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this lock was acquired and not released, by this process."""
        return self._owner == os.getpid()

    def acquire(self) -> None:
        """Take the lock; nothing happens if it is held already.

        Raises:
            RunLockedError: Somebody else has it; the message says who.
            RunDirectoryError: The lock file cannot be made.
        """
        if self.held:
            return
        path = self.directory / LOCK_NAME
        key = _file_key(path)
        if key in _held:
            raise RunLockedError(f"{self.directory} is in use by another runner of this process")
        content = json.dumps(asdict(LockHolder.current(self.run))) + "\n"
        deadline = time.monotonic() + _WAIT_SECONDS
        while not self._try(path, content):
            if time.monotonic() > deadline:
                raise RunLockedError(_locked_message(self.directory))
            time.sleep(0.05)
        self._owner = os.getpid()

    def release(self, *, undo: bool = False) -> None:
        """Give the lock back; nothing happens if it is not held.

        Args:
            undo: Whether the file says again what it said before, since nothing was done.
        """
        if self._descriptor is not None:
            if undo and self.held:
                _overwrite(self._descriptor, self._before)
            if self._key is not None:
                _held.discard(self._key)
            os.close(self._descriptor)
        if self._lease is not None and self.held:
            path = self.directory / _LEASE_NAME
            if _read(path) == self._lease:
                path.unlink(missing_ok=True)
        self._descriptor = self._key = self._lease = self._owner = None

    def _try(self, path: Path, content: str) -> bool:
        if sys.platform == "win32":
            return self._try_lease(content)
        descriptor = _open(path)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return self._try_lease(content)
            if error.errno not in _BUSY:
                raise _unusable(path, error) from error
            return False
        self._before = os.read(descriptor, 4096)
        _overwrite(descriptor, content.encode())
        details = os.fstat(descriptor)
        self._descriptor = descriptor
        self._key = (os.getpid(), details.st_dev, details.st_ino)
        _held.add(self._key)
        return True

    def _try_lease(self, content: str) -> bool:
        path = self.directory / _LEASE_NAME
        content = json.dumps({**json.loads(content), "token": uuid4().hex})
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(path, flags, 0o666), "w", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            _remove_stale_lease(path)
            return False
        except OSError as error:
            raise _unusable(path, error) from error
        self._lease = content
        return True


def is_locked(directory: str | os.PathLike[str]) -> bool:
    """Whether a process, this one included, works in a directory; nothing is written or locked."""
    return lock_holder(directory) is not None


def lock_holder(directory: str | os.PathLike[str]) -> LockHolder | None:
    """The process that works in a directory; None if none does."""
    lease = Path(directory) / _LEASE_NAME
    if lease.exists():
        holder = LockHolder.read(_read(lease))
        return None if holder.is_gone else holder
    path = Path(directory) / LOCK_NAME
    key = _file_key(path)
    if key in _held:
        return LockHolder.current("")  # opening the file would cost this process the lock
    if key is None or not _is_locked_by_another(path):
        return None
    return LockHolder.read(_read(path))


def in_use(directory: str | os.PathLike[str]) -> str:
    """The process that works in a directory, or did a moment ago, in words."""
    holder = lock_holder(directory) or LockHolder.read(_read(Path(directory) / LOCK_NAME))
    return f"in use by process {holder.pid} on {holder.host} since {holder.start_time}"


def recorded_run(directory: str | os.PathLike[str]) -> UUID | None:
    """The uuid of the run in a directory, as who locked it last has left it there."""
    with contextlib.suppress(ValueError):
        return UUID(LockHolder.read(_read(Path(directory) / LOCK_NAME)).run)
    return None


def _overwrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _is_locked_by_another(path: Path) -> bool:
    """Ask the kernel, which answers without locking anything."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        values = {"type": fcntl.F_WRLCK, "whence": os.SEEK_SET, "start": 0, "len": 0, "pid": 0}
        query = struct.pack(_FLOCK, *(values[field] for field in _FLOCK_FIELDS))
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        return bool(answer[_FLOCK_FIELDS.index("type")] != fcntl.F_UNLCK)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunDirectoryError(errno.EINVAL, "the lock is not a regular file", str(path))
    return descriptor


def _unusable(path: Path, error: OSError) -> RunDirectoryError:
    reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
    message = f"the lock cannot be made, so the directory cannot be used: {reason}"
    return RunDirectoryError(error.errno, message, str(path))


def _file_key(path: Path) -> tuple[int, int, int] | None:
    try:
        details = os.lstat(path)
    except OSError:
        return None
    return os.getpid(), details.st_dev, details.st_ino


def _remove_stale_lease(path: Path) -> None:
    content = _read(path)
    if not content or not LockHolder.read(content).is_gone:
        return
    stale = path.with_name(f".{uuid4().hex}.tmp")
    with contextlib.suppress(OSError):
        os.rename(path, stale)
        if _read(stale) != content:  # somebody was faster, and has the lock by now
            os.link(stale, path)
        stale.unlink()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _locked_message(directory: Path) -> str:
    way_out = "Wait for it or stop it, or start a new run with resume=False."
    lease = directory / _LEASE_NAME
    if lease.exists():
        way_out += f" If that process has ended, delete {lease}."
    return f"{directory} is {in_use(directory)}. {way_out}"
