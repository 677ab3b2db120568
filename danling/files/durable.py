"""Durability on any file system: what one of them lacks is left out, with one warning.

Some file systems know no `fsync` of a file or of a directory, and some no hard links. A write goes
on without the call, and the log says so once for each directory. Any other error is raised.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from danling.files import filesystem

__all__ = ["fsync_directory", "fsync_file", "link"]


_NO_LINK = filesystem.UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EXDEV}
_warned: set[tuple[Path, str]] = set()
_logger = logging.getLogger(__name__)


def fsync_file(descriptor: int, directory: Path) -> None:
    """Return once the content of an open file is on the disk.

    Args:
        descriptor: The file.
        directory: The directory of the file, for the warning.

    Raises:
        OSError: The disk refuses.
    """
    try:
        filesystem.fsync_file(descriptor)
    except OSError as error:
        _leave_out("fsync of a file", directory, error, filesystem.UNSUPPORTED)


def fsync_directory(directory: Path, named: Path | None = None) -> None:
    """Return once the names in a directory are on the disk.

    Args:
        directory: The directory.
        named: The directory that a warning names, where it is another one.

    Raises:
        OSError: The disk refuses.
    """
    try:
        filesystem.fsync_directory(directory)
    except OSError as error:
        _leave_out("fsync of a directory", named or directory, error, filesystem.UNSUPPORTED)


def link(source: Path, target: Path) -> bool:
    """Give a file a second name; returns False where the file system cannot.

    Raises:
        OSError: The disk refuses.
    """
    try:
        filesystem.link(source, target)
    except OSError as error:
        _leave_out("hard links", target.parent, error, _NO_LINK)
        return False
    return True


def _leave_out(what: str, directory: Path, error: OSError, accepted: frozenset[int]) -> None:
    if error.errno not in accepted:
        raise error
    if (directory, what) not in _warned:
        _warned.add((directory, what))
        _logger.warning("%s has no %s (%s): going on without", directory, what, error.strerror)
