"""The checkpoints of a directory, read from the files themselves."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danling.checkpoint import archive
from danling.checkpoint.commit import SUFFIX, is_regular
from danling.checkpoint.reading import is_intact, trailer_of
from danling.checkpoint.sharded.shards import directories
from danling.checkpoint.trailer import Trailer, is_unsealed, read_trailer
from danling.errors import CheckpointError
from danling.files import filesystem

__all__ = ["Catalog", "Entry", "checked_names", "is_name", "is_numbered", "series_of"]


_NUMBERED = re.compile(
    r"(?:(?!(?:best|latest|previous)-)(?P<series>[A-Za-z0-9][\w.=-]{0,99})-)?"
    r"(?:epoch|step)-(?:0|[1-9]\d{0,18})",
    re.ASCII,
)
_FIXED = re.compile(r"latest|previous|best(-[A-Za-z0-9][\w.=-]{0,99})?", re.ASCII)

_logger = logging.getLogger(__name__)
_UNKNOWN = "?"  # of a file that has lost its end

_Signature = tuple[int, int, int, int]


def is_name(name: str) -> bool:
    """Whether a checkpoint may have this name: `latest`, `best-loss`, `auc-epoch-10`."""
    return bool(_FIXED.fullmatch(name)) or is_numbered(name)


def is_numbered(name: str) -> bool:
    """Whether this is the name of one epoch or step, which rotation may remove."""
    return bool(_NUMBERED.fullmatch(name))


def series_of(name: str) -> str | None:
    """The series of a numbered name, `""` for one without; None for a name without a number.

    Example:
        >>> series_of("auc-epoch-10"), series_of("epoch-10"), series_of("best-auc")
        ('auc', '', None)
    """
    found = _NUMBERED.fullmatch(name)
    return None if found is None else found["series"] or ""


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        CheckpointError: One of them is no name of a checkpoint.
    """
    for name in names:
        if not is_name(name) or name == "previous":
            raise CheckpointError(
                f"{name!r} is no name of a checkpoint; valid are 'latest', 'best', 'best-NAME', "
                "'epoch-10', 'step-1200' and 'NAME-epoch-10'"
            )
    if not names:
        raise CheckpointError("a checkpoint needs a name; valid are 'latest', 'best', 'epoch-10'")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Entry:
    """One name in the directory of checkpoints.

    Attributes:
        name: The name without `.pth`.
        path: The file.
        trailer: The description at the end of the file.
    """

    name: str
    path: Path
    trailer: Trailer

    @property
    def global_step(self) -> int:
        return self.trailer.global_step

    @property
    def epoch(self) -> int:
        return self.trailer.epoch

    @property
    def digest(self) -> str:
        """SHA-256 of the content: equal for the names of one commit, on every machine."""
        return self.trailer.sha256

    @property
    def size(self) -> int:
        """Bytes of the file and its shards."""
        return self.path.stat().st_size + self.trailer.shards_size

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.trailer.metrics

    def row(self) -> dict[str, Any]:
        """The entry as it stands in `index.json`."""
        return {
            "sha256": self.digest,
            "size": self.size,
            "global_step": self.global_step,
            "epoch": self.epoch,
            "serial": self.trailer.serial,
            "metrics": dict(self.metrics),
            "shards": self.trailer.shards,
        }


class Catalog:
    """Lists a directory; what was read of a file is remembered until the file changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._trailers: dict[_Signature, Trailer] = {}
        self._intact: set[_Signature] = set()

    def files(self) -> dict[str, Path]:
        """Everything that has the name of a checkpoint, whatever it is."""
        with suppress(FileNotFoundError):
            paths = (self._directory / name for name in sorted(os.listdir(self._directory)))
            return {
                path.stem: path for path in paths if path.suffix == SUFFIX and is_name(path.stem)
            }
        return {}

    def entries(self) -> list[Entry]:
        """The files with a readable trailer, newest first."""
        known, self._trailers = self._trailers, {}
        found = []
        for name, path in self.files().items():
            signature = _signature(path)
            if signature is None:
                continue
            trailer = known.get(signature) or _trailer(path)
            if trailer is not None:
                self._trailers[signature] = trailer
                found.append(Entry(name, path, trailer))
        return sorted(found, key=_newest_first)

    def trust(self, path: Path) -> None:
        """Takes a file that was just written as intact, so that it is not read again for that."""
        signature = _signature(path)
        if signature is not None:
            self._intact.add(signature)

    def intact(self, entry: Entry) -> bool:
        """Whether the content of a file is what was written."""
        signature = _signature(entry.path)
        if signature not in self._intact and is_intact(entry.path):
            self.trust(entry.path)
        shards = entry.trailer.shards
        return signature in self._intact and (shards is None or (self._directory / shards).is_dir())

    def shards(self) -> dict[str, str | None]:
        """The directory of shards of each checkpoint; `?` of one that cannot be read."""
        read = {entry.name: entry.trailer.shards for entry in self.entries()}
        unread = {name: path for name, path in self.files().items() if name not in read}
        return read | {name: _shards_of(path) for name, path in unread.items()}

    def released(self, before: Mapping[str, str | None], own: str | None) -> set[str]:
        """Directories of shards that no checkpoint names any more.

        Args:
            before: The result of `shards` before names were changed.
            own: The directory of a commit that may have failed.
        """
        # what is no directory of shards is not removed, whatever a file says
        there = directories(self._directory).intersection(filter(None, (*before.values(), own)))
        if not there:
            return set()
        now = self.shards()
        if any(shards == _UNKNOWN != before.get(name) for name, shards in now.items()):
            return set()  # it may name any of them
        return there.difference(filter(None, now.values()))

    def orphans(self) -> set[str]:
        """Directories of shards that no file names, also none that was set aside as damaged.

        None at all while there is a file that has lost its end, and may name one of them.
        """
        found = directories(self._directory)
        paths = self._directory.glob(f"*{SUFFIX}*") if found else ()
        named = {_shards_of(path) for path in paths if is_regular(path)}
        if _UNKNOWN in named and found - named:
            _logger.warning(
                "%s: shards are kept, since a file that has lost its end may name them",
                self._directory,
            )
            return set()
        return found - named


def _newest_first(entry: Entry) -> tuple[int, int, str]:
    # the name breaks the tie of one commit: `latest` before `epoch-10` in messages
    return (-entry.trailer.serial, -entry.global_step, "" if entry.name == "latest" else entry.name)


def _shards_of(path: Path) -> str | None:
    """The directory of shards that a file names."""
    try:
        if not is_regular(path):
            return _UNKNOWN
        with filesystem.open_existing(path) as file:
            trailer = read_trailer(file)[0]
            if trailer is not None:
                return trailer.shards
            if not is_unsealed(file) or archive.problem(file) is not None:
                return _UNKNOWN
            file.seek(0)
            head = torch.load(file, map_location="meta", weights_only=True)  # saved again by hand
        name = head["shards"]["directory"] if "shards" in head else None
        return name if name is None or isinstance(name, str) else _UNKNOWN
    except Exception:  # torch raises all kinds of errors at bytes that it does not expect
        return _UNKNOWN


def _trailer(path: Path) -> Trailer | None:
    try:
        return trailer_of(path)
    except CheckpointError:
        return None


def _signature(path: Path) -> _Signature | None:
    """Changes when the content does; None if there is no regular file."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return None
