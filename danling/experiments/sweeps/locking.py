"""Locks on the configurations of a sweep, which the processes that run them hold too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

__all__ = ["locked"]


def locked(path: Path) -> IO[bytes] | None:
    """A lock on a file, which processes that inherit the file hold too; None if another has it."""
    import fcntl  # Windows has none, and reads this module too

    file = open(path, "ab")  # noqa: SIM115  # open as long as it is locked
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    os.set_inheritable(file.fileno(), False)
    return file
