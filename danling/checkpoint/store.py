"""The checkpoints of one run: commit, load, and what is kept.

    checkpoints/
      latest.pth      the newest, in the same file as the numbered and best names of its commit
      previous.pth    the one before, in another file
      best.pth        best-NAME.pth
      epoch-10.pth    step-1200.pth
      shards-1200-5f0c9a2e/   what processes have parts of (see `danling.checkpoint.sharded.shards`)
      index.json      a list of them for people and tools; never read back

Everything is found from the files themselves (see `danling.checkpoint.trailer`): a directory that
was moved, copied or tidied by hand works as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from danling.checkpoint.background import Snapshot, on_host
from danling.checkpoint.catalog import Catalog, Entry, checked_names, is_name, is_numbered
from danling.checkpoint.commit import TEMPORARY, CheckpointDirectory
from danling.checkpoint.encoding import encode
from danling.checkpoint.reading import (
    FORMAT,
    DamagedCheckpointError,
    ForeignCheckpointError,
    read_checkpoint,
)
from danling.checkpoint.sharded.shards import Manifest, new_directory, remove, total
from danling.checkpoint.trailer import Trailer
from danling.errors import CheckpointError
from danling.files import filesystem
from danling.files.failpoints import failpoint
from danling.files.json import dumps

__all__ = ["CheckpointStore", "load_newest"]


_ORPHAN = re.compile(rf"{re.escape(TEMPORARY)}[\w.=-]+\.\d+\.\d+", re.ASCII)
_logger = logging.getLogger(__name__)


class CheckpointStore:
    """Writes, reads and tidies the directory of a run's checkpoints.

    One process writes (it holds the lock of the run), any number read. A save that returned is
    durable; one that failed or was killed leaves what was there before.

    Args:
        directory: Usually `{run}/checkpoints`; created by the first commit, if `{run}` is there.
        run: uuid of the run, written into each file and compared when one is read.
        keep_previous: Whether the file that `latest.pth` replaces stays as `previous.pth`.

    Example:
        >>> store = CheckpointStore(getfixture("tmp_path") / "checkpoints")
        >>> _ = store.commit({"model": {}}, ["latest", "epoch-1"], global_step=40, epoch=1)
        >>> _ = store.commit({"model": {}}, ["latest", "best"], global_step=80, epoch=2)
        >>> [(entry.name, entry.global_step) for entry in store.candidates()]
        [('latest', 80), ('best', 80), ('epoch-1', 40), ('previous', 40)]
        >>> checkpoint, path = store.load("latest")
        >>> path.name, checkpoint["format"]
        ('latest.pth', 1)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        run: str | None = None,
        keep_previous: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.run = run
        self._files = CheckpointDirectory(self.directory, keep_previous)
        self._catalog = Catalog(self.directory)
        self._lock = Lock()

    def commit(
        self,
        checkpoint: Mapping[str, Any] | Snapshot,
        names: Sequence[str],
        *,
        global_step: int,
        epoch: int,
        metrics: Mapping[str, float | None] | None = None,
        shards: Manifest | None = None,
    ) -> Path:
        """Writes a checkpoint once, under all of `names`; durable when it returns.

        Args:
            checkpoint: Values by top-level key; `format` and `run` are added where missing.
            names: `latest`, `best`, `best-NAME`, `epoch-N` or `step-N`.
            global_step: Optimizer steps completed.
            epoch: Epochs completed.
            metrics: Numbers for the choice of what to keep, found again in `candidates`.
            shards: The result of `sharded.shards.finish` for the tensors that are in shards.

        Returns:
            The file of the first name.

        Raises:
            CheckpointError: It cannot be encoded or written; `errno` tells a full disk from the
                rest. What was there before can still be loaded.
        """
        names = checked_names(names)
        numbers = {k: float(v) for k, v in (metrics or {}).items() if v is not None}
        path = self._files.file(names[0])
        what = f"the checkpoint of step {global_step} was not saved"
        with (
            self._lock,  # another save may be under way in a thread
            _translated(what, path),
            self._releasing(None if shards is None else shards["directory"]),
        ):
            serial = self._next_serial()
            trailer = Trailer(names, serial, global_step, epoch, self.run, numbers)
            if shards is not None:
                trailer = replace(trailer, shards=shards["directory"], shards_size=total(shards))
            self._files.prepare()
            temporary = self._files.write(self._payload(checkpoint, shards), trailer)
            self._files.publish(temporary, names)
            self._catalog.trust(path)
            self._write_index()
        return path

    def new_shards(self, global_step: int) -> Path:
        """A new directory for the shards of a checkpoint that is to be committed.

        Raises:
            CheckpointError: The directory cannot be made.
        """
        with _translated(f"the checkpoint of step {global_step} was not saved", self.directory):
            self._files.prepare()
            return new_directory(self.directory, global_step)

    def load(
        self, which: str | Path = "latest", *, whole: bool = True
    ) -> tuple[dict[str, Any], Path]:
        """Reads a checkpoint of this directory, or any file.

        `"latest"` is the newest valid one: what is damaged is set aside as `*.corrupt-N`, with a
        warning, and the next older one is tried. Any other name, and a path, is that file or an
        error. A path may lead to another run. `whole`: see `read_checkpoint`.

        Returns:
            The checkpoint, on the CPU, and the file that it was read from.

        Raises:
            CheckpointError: There is none, or none that is valid: the message lists each file and
                its cause. `errno` is ENOENT where nothing was ever saved.
        """
        if which == "latest":
            return load_newest(self._catalog, self.directory, self.run, whole)
        if not is_name(str(which)):
            return read_checkpoint(which, whole=whole), Path(which)
        path = self._files.file(str(which))
        if not os.path.lexists(path):
            there = ", ".join(self._catalog.files()) or "none"
            message = f"there is no checkpoint {which!r}; in the directory are: {there}"
            raise CheckpointError(errno.ENOENT, message, str(path))
        return read_checkpoint(path, run=self.run, whole=whole), path

    def candidates(self) -> list[Entry]:
        """The checkpoints of this run, newest first, without those that lost their end."""
        ours = (None, self.run)
        entries = self._catalog.entries()
        return [entry for entry in entries if self.run is None or entry.trailer.run in ours]

    def is_empty(self) -> bool:
        """Whether no save ever ended here: a run may start afresh, as nothing can be lost.

        What was left by a save that never ended does not count, a damaged checkpoint does.
        """
        if self._catalog.files():
            return False
        return not any(self.directory.glob("*.corrupt-*"))

    def rotate(self, keep: Collection[str]) -> list[str]:
        """Removes the numbered names (`epoch-N`, `step-N`) that are not in `keep`.

        Nothing else is ever removed, and nothing at all unless a valid checkpoint stays. A name
        that cannot be removed is a warning, and tried again next time.

        Returns:
            The names that were removed.
        """
        entries = self.candidates()
        doomed = [e for e in entries if is_numbered(e.name) and e.name not in keep]
        if not doomed:
            return []
        if not any(self._catalog.intact(e) for e in entries if e not in doomed):
            _logger.warning("%s: nothing is removed, as no other is valid", self.directory)
            return []
        with self._releasing():
            removed = [entry.name for entry in doomed if self._files.remove(entry.path)]
        if removed:
            self._write_index()
        return removed

    def clean(self) -> list[str]:
        """Tidies up after a process that died in a save; only for who holds the lock of the run.

        Files that were never committed are removed. `latest` and `best` are given to the newest
        checkpoint that was to have them.

        Returns:
            A line for the log about each change.

        Raises:
            CheckpointError: The disk refuses a change.
        """
        done = []
        with _translated("the checkpoints cannot be tidied up", self.directory):
            for name in sorted(os.listdir(self.directory)) if self.directory.is_dir() else ():
                if _ORPHAN.fullmatch(name) and self._files.remove(self.directory / name):
                    done.append(f"removed {name}, which was never committed")
            entries = self.candidates()
            current = {entry.name: entry for entry in entries}
            wanted: dict[str, Entry] = {}
            for entry in entries:
                for name in entry.trailer.names:
                    wanted.setdefault(name, entry)
            for name, entry in wanted.items():
                if not is_numbered(name) and self._repair(name, entry, current.get(name)):
                    done.append(f"{name} is step {entry.global_step} again, as {entry.name}")
            for name in sorted(self._catalog.orphans()):
                if remove(self.directory / name):
                    done.append(f"removed {name}, which no checkpoint names")
        return done

    def preflight(self, expected_bytes: int | None = None) -> None:
        """Fails before the first step where the first save would; warns when space is short.

        Args:
            expected_bytes: The size of a checkpoint; that of the newest here if None.

        Raises:
            CheckpointError: The directory cannot be made, or files cannot be written in it.
        """
        with _translated("checkpoints cannot be saved", self.directory):
            entries = self.candidates() if expected_bytes is None else []
            self._files.preflight(entries[0].size if entries else expected_bytes or 0)

    def _payload(self, checkpoint: Mapping[str, Any] | Snapshot, shards: Manifest | None) -> Any:
        if isinstance(checkpoint, Snapshot):
            payload = checkpoint.payload
        else:
            payload = on_host(encode(dict(checkpoint)))
        run = {} if self.run is None else {"run": {"uuid": self.run}}
        parts = {} if shards is None else {"shards": dict(shards)}
        return {"format": FORMAT, **run, **payload, **parts}

    @contextmanager
    def _releasing(self, own: str | None = None) -> Iterator[None]:
        """Removes the shards to which no name leads any more; its own only, if the block fails."""
        before = self._catalog.shards()
        try:
            yield
        except BaseException:
            before = {}
            raise
        finally:
            if released := self._catalog.released(before, own):
                self._files.settle()
                for shards in sorted(released):
                    remove(self.directory / shards)

    def _next_serial(self) -> int:
        return max((entry.trailer.serial for entry in self.candidates()), default=0) + 1

    def _repair(self, name: str, wanted: Entry, current: Entry | None) -> bool:
        if current is None and os.path.lexists(self._files.file(name)):
            return False  # it has lost its end, or somebody else put it there: loading it tells
        newer = current is None or current.trailer.serial < wanted.trailer.serial
        if not newer or not self._catalog.intact(wanted):
            return False
        self._files.publish(self._files.link_temporary(wanted.path), [name])
        return True

    def _write_index(self) -> None:
        """The list for people: it failing is no reason to lose a checkpoint that was saved."""
        try:
            rows = {entry.name: entry.row() for entry in self.candidates()}
            text = dumps({"schema": 1, "checkpoints": rows}, indent=2)
            self._files.write_text("index.json", text + "\n")
            failpoint("checkpoint.after_index")
        except OSError as error:
            _logger.warning("%s/index.json was not written: %s", self.directory, error)


@contextmanager
def _translated(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(error.errno, f"{what}: {error.strerror}", str(path)) from error


_Loaded = tuple[dict[str, Any], Path]
_Read = Callable[[Path], dict[str, Any]]

_LISTINGS = 5  # tries, where a process that writes here removes each file before it is opened


def load_newest(catalog: Catalog, directory: Path, run: str | None, whole: bool = True) -> _Loaded:
    """Loads the newest valid checkpoint; what is damaged is renamed and reported.

    Newest is the one with the highest serial number *in the file*: neither its time, which copying
    changes, nor its step, which is lower again after a run went back to `best`. A valid file that
    something else saved is the newest if it is `latest.pth`, else the last resort.

    Raises:
        CheckpointError: No file is valid, a file cannot be opened (which says nothing about it, so
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
