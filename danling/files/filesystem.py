"""The primitives that read and change the disk, one small function each.

A commit is safe or not by the order of these calls. They are in one place so that a test can
record the calls of a real commit, make any of them fail, and work out every state that a crash
between them may leave behind. Call them through the module (`filesystem.replace(...)`).
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from danling.files.failpoints import failpoint

__all__ = [
    "UNSUPPORTED",
    "begin_writeback",
    "close",
    "fsync_directory",
    "fsync_file",
    "link",
    "make_directory",
    "open_existing",
    "open_new",
    "replace",
    "unlink",
    "write",
]


UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""The errors of a file system that does not know a call: the call is left out, with a warning."""


def open_new(path: Path, *, private: bool = False) -> int:
    """Creates a file and opens it for writing; never opens one that is there, nor a link.

    Args:
        path: The file.
        private: Whether its owner alone may read it, from its first byte on. Else the permissions
            follow the umask: `tempfile` would give 0600 and shut a group out.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # not all on every platform
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o600 if private else 0o666)


def open_existing(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file to read it; a symbolic link is followed.

    The open of a pipe would wait for its writer, for ever: whoever reads must see to it that it is
    a regular file. Every read of the file passes the fail point `file.before_read`.
    """
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return io.BufferedReader(_File(os.open(path, flags)))


class _File(io.FileIO):
    def readinto(self, buffer: Any) -> int:
        failpoint("file.before_read")
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        failpoint("file.before_read")
        return super().readall()


def write(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Writes all of `data`: the system may take less at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Asks the system to write a range of a file to the disk now, so that `fsync_file` waits less.

    What of the range is on the disk already leaves the memory of the system. It is advice: where
    the system does not know it, nothing happens.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def fsync_file(descriptor: int) -> None:
    """Returns once the content of an open file is on the disk."""
    if sys.platform == "darwin":  # fsync leaves it in the drive's own cache there
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Closes a file; network file systems report late write errors here."""
    os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Returns once the names in a directory are on the disk (Windows has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Creates one directory; its parent must be there."""
    os.mkdir(path)


def replace(source: Path, target: Path) -> None:
    """Gives `source` the name `target` in one step, in place of what had it."""
    os.replace(source, target)


def link(source: Path, target: Path) -> None:
    """Gives the file `source` a second name, never following a symbolic link."""
    os.link(source, target, follow_symlinks=os.link not in os.supports_follow_symlinks)


def unlink(path: Path) -> None:
    """Removes a name."""
    os.unlink(path)
