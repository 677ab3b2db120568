"""The commit of a checkpoint: from values in memory to names that survive a crash.

The steps, and why each is where it is:

1. The whole file is written under a temporary name in the same directory, once, and hashed on
   the way; `fsync` makes its content durable *before* any name points to it.
2. The old `latest.pth` gets a second, temporary name, so that its content outlives step 3.
3. `rename` gives the new file its first name, and hard links its others: one content, one
   serialisation. Numbered names come first, so that `latest` and `best` never point to what a
   numbered name does not have yet.
4. The old file becomes `previous.pth`, only now: at every moment two files of two steps are there,
   and damage done in place to one, with all its names, is survived.
5. `fsync` of the directory makes the names durable. Until it returned nothing may be deleted.

A file system without hard links gets copies, and one without `fsync` goes on without (see
`danling.files.durable`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch

from danling.checkpoint.background import addresses
from danling.checkpoint.trailer import Sealer, Trailer
from danling.files import durable, filesystem
from danling.files.failpoints import failpoint

__all__ = ["SUFFIX", "TEMPORARY", "CheckpointDirectory", "is_regular"]


SUFFIX = ".pth"
TEMPORARY = ".tmp."
"""Start of the names of files that are not committed; what has it may be removed at a start."""

_CHUNK = 1 << 20
_HEADROOM = 1.1  # of the size of the last checkpoint
_logger = logging.getLogger(__name__)


class CheckpointDirectory:
    """Writes files into one directory, by the steps above.

    Args:
        path: The directory; it is created when its parent is there.
        keep_previous: Whether the file that `latest` replaces stays as `previous`.
    """

    def __init__(self, path: Path, keep_previous: bool) -> None:
        self.path = path
        self._keep_previous = keep_previous
        self._count = itertools.count()

    def file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    def prepare(self) -> None:
        """Makes sure of the directory: created if its run's is there, and never through a link."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            filesystem.make_directory(self.path)
            durable.fsync_directory(self.path.parent, self.path)
            return
        if not stat.S_ISDIR(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "not a directory"
            raise NotADirectoryError(errno.ENOTDIR, f"it is {what}", str(self.path))

    def write(self, payload: Any, trailer: Trailer) -> Path:
        """Step 1. Returns the temporary file."""
        failpoint("checkpoint.before_open")
        with self._new_file(trailer.names[0]) as (temporary, descriptor):
            failpoint("checkpoint.after_open")
            with closing(Sealer(descriptor, addresses(payload))) as sealer:
                _serialise(payload, sealer)
                sealer.seal(trailer)
            if os.fstat(descriptor).st_size != sealer.size:
                raise OSError(errno.EIO, "the file has another size than what was written")
            failpoint("checkpoint.after_write")
        return temporary

    def publish(self, temporary: Path, names: Sequence[str]) -> None:
        """Steps 2 to 5."""
        first, *aliases = (self.file(name) for name in sorted(names, key=_numbered_first))
        kept = None
        try:
            if "latest" in names and self._keep_previous:
                kept = self._keep(self.file("latest"), self.file("previous"))
            failpoint("checkpoint.after_keep")
            filesystem.replace(temporary, first)
            failpoint("checkpoint.after_replace")
            for alias in aliases:
                self._alias(first, alias)
            if kept is not None:
                filesystem.replace(kept, self.file("previous"))
                failpoint("checkpoint.after_previous")
        except BaseException:
            self._discard(temporary)
            if kept is not None:
                self._discard(kept)
            raise
        durable.fsync_directory(self.path)
        failpoint("checkpoint.after_directory_fsync")

    def settle(self) -> None:
        """Step 5, for names that were removed: what they led to may be deleted then."""
        durable.fsync_directory(self.path)

    def link_temporary(self, source: Path) -> Path:
        """A second, temporary name of a file, or a copy of it where there are no links."""
        temporary = self._temporary(source.stem)
        return temporary if durable.link(source, temporary) else self._copy(source)

    def preflight(self, size: int) -> None:
        """Finds out whether files can be written here, and warns where `size` bytes cannot."""
        self.prepare()
        with self._new_file("probe") as (temporary, descriptor):
            filesystem.write(descriptor, b"0")
        filesystem.unlink(temporary)
        free = shutil.disk_usage(self.path).free
        if free < size * _HEADROOM:
            _logger.warning(
                "%s: %.1f MB are free, and a checkpoint takes %.1f MB",
                self.path,
                free / 1e6,
                size / 1e6,
            )

    def remove(self, path: Path) -> bool:
        """Removes a name; one that cannot be removed is a warning."""
        failpoint("checkpoint.before_unlink")
        try:
            filesystem.unlink(path)
        except FileNotFoundError:  # somebody else did
            return False
        except OSError as error:
            _logger.warning(
                "%s cannot be removed (%s): tried again next time", path, error.strerror
            )
            return False
        return True

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file in one step."""
        with self._new_file(name, private=False) as (temporary, descriptor):
            filesystem.write(descriptor, text.encode("utf-8"))
        failpoint("checkpoint.after_index_write")
        try:
            filesystem.replace(temporary, self.path / name)
        except BaseException:
            self._discard(temporary)
            raise

    def _keep(self, latest: Path, previous: Path) -> Path | None:
        """Step 2. Returns the temporary name, if there is something to keep."""
        if not is_regular(latest):
            return None
        if is_regular(previous) and previous.samefile(latest):
            return None  # a rename between two names of one file would do nothing
        temporary = self._temporary("previous")
        if durable.link(latest, temporary):
            return temporary
        filesystem.replace(latest, previous)
        return None

    def _alias(self, source: Path, target: Path) -> None:
        temporary = self.link_temporary(source)
        try:
            failpoint("checkpoint.after_link")
            filesystem.replace(temporary, target)
        except BaseException:
            self._discard(temporary)
            raise
        failpoint("checkpoint.after_alias")

    def _copy(self, source: Path) -> Path:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
        with (
            open(os.open(source, flags), "rb") as file,
            self._new_file(source.stem) as (temporary, descriptor),
        ):
            while chunk := file.read(_CHUNK):
                filesystem.write(descriptor, chunk)
        return temporary

    @contextmanager
    def _new_file(self, name: str, *, private: bool = True) -> Iterator[tuple[Path, int]]:
        """A temporary file that is durable when the block ends, and gone when it fails.

        A checkpoint is private: it holds the configuration as it is.
        """
        temporary = self._temporary(name)
        descriptor = filesystem.open_new(temporary, private=private)
        try:
            try:
                yield temporary, descriptor
                durable.fsync_file(descriptor, self.path)
            finally:
                filesystem.close(descriptor)
            failpoint("checkpoint.after_fsync")
        except BaseException:
            self._discard(temporary)
            raise

    def _temporary(self, name: str) -> Path:
        return self.path / f"{TEMPORARY}{name}.{os.getpid()}.{next(self._count)}"

    def _discard(self, path: Path) -> None:
        with suppress(OSError):  # an error is already on its way, and a start removes the rest
            filesystem.unlink(path)


def is_regular(path: Path) -> bool:
    """Whether there is a file of this name: not a link, a directory or a pipe."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _serialise(payload: Any, sealer: Sealer) -> None:
    try:
        torch.save(payload, cast(IO[bytes], sealer))
    except RuntimeError:
        if sealer.error is None:
            raise
        raise sealer.error from None  # torch reports "unexpected pos" and no errno


def _numbered_first(name: str) -> int:
    return 1 if name == "latest" or name.startswith("best") else 0
