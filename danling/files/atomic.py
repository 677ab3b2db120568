"""Files that are either the old ones or the new ones, never a half."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from danling.files import durable, filesystem
from danling.files.failpoints import failpoint
from danling.files.json import dumps

__all__ = ["remove_orphans", "write_bytes", "write_json", "write_text"]


_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def write_text(
    path: str | os.PathLike[str], text: str, *, fsync: bool = False, private: bool = False
) -> None:
    """Replace a file by `text` in one step, in UTF-8 with the line ends as given.

    A reader, and a crash at any moment, sees the old file or the new one. What is no regular file,
    as a pipe or a device, is written to and stays what it is. The permissions follow
    the umask; with `private` its owner alone may read it. With `fsync` the new file has reached
    the disk when this returns.

    Raises:
        OSError: The file cannot be written; the old one is still there, and nothing else is.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> write_text(folder / "note.txt", "hello")
        >>> [(file.name, file.read_text()) for file in folder.iterdir()]
        [('note.txt', 'hello')]
    """
    write_bytes(path, text.encode("utf-8"), fsync=fsync, private=private)


def write_json(path: str | os.PathLike[str], value: Any, *, fsync: bool = False) -> None:
    """Replace a file by `value` as JSON that every parser reads (NaN is the string "NaN").

    Raises:
        OSError: The errors of `write_text`.

    Example:
        >>> file = getfixture("tmp_path") / "latest.json"
        >>> write_json(file, {"epoch": 3})
        >>> print(file.read_text(), end="")
        {
          "epoch": 3
        }
    """
    write_text(path, dumps(value, indent=2) + "\n", fsync=fsync)


def write_bytes(
    path: str | os.PathLike[str], data: bytes, *, fsync: bool = False, private: bool = False
) -> None:
    """Replace a file by `data` in one step; see `write_text`.

    Raises:
        OSError: The errors of `write_text`.
    """
    target = Path(path)
    if _is_special(target):
        target.write_bytes(data)
        return
    temporary = target.parent / f".{uuid4().hex}.tmp"
    try:
        _create(temporary, data, fsync, private)
        failpoint("file.before_replace")
        filesystem.replace(temporary, target)
        if fsync:
            durable.fsync_directory(target.parent)
    except BaseException as error:
        with suppress(OSError):
            filesystem.unlink(temporary)
        if isinstance(error, OSError):  # the user knows the target, not the temporary name
            error.filename, error.filename2 = os.fspath(path), None
        raise


def remove_orphans(directory: str | os.PathLike[str]) -> None:
    """Remove what a process that died in a write left behind; for who alone writes there.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> orphan = folder / ".0123456789abcdef0123456789abcdef.tmp"
        >>> _ = orphan.write_text("half")
        >>> remove_orphans(folder)
        >>> orphan.exists()
        False
    """
    with suppress(OSError):
        for name in os.listdir(directory):
            if _TEMPORARY.fullmatch(name):
                filesystem.unlink(Path(directory) / name)


def _is_special(path: Path) -> bool:
    """Whether there is a pipe, a device or a socket, or a link to one: it is not ours to replace.

    A link to a file is replaced, as ever, and what is no file at all says so in an error.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _create(path: Path, data: bytes, fsync: bool, private: bool) -> None:
    descriptor = filesystem.open_new(path, private=private)
    try:
        filesystem.write(descriptor, data)
        if fsync:
            durable.fsync_file(descriptor, path.parent)
    finally:
        filesystem.close(descriptor)
