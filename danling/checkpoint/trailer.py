"""The end of a checkpoint file, by which it is recognised and checked.

`torch.save` writes a zip archive, and `torch.load` does not check its contents: a third of all
single-bit errors load silently. A zip archive may end in a comment, which every reader skips. Ours
holds a line of JSON that says which step the file is, with the SHA-256 of everything before it, and
then the SHA-256 of that line. So a file is verified and ordered by what is in it: not by its name,
its time or a second file, all of which change when it is copied, and without loading it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from danling.checkpoint.digest import HashedFile
from danling.errors import CheckpointError, ConfigError
from danling.files.failpoints import failpoint
from danling.files.json import loads

__all__ = ["Sealer", "Trailer", "is_unsealed", "read_trailer"]


_END = b"PK\x05\x06"  # signature of the last record of a zip archive
_END_SIZE = 22  # bytes; the last two are the length of the comment
_DIGEST_SIZE = 64  # hexadecimal digits
_MAX_COMMENT = 0xFFFF
_KINDS: dict[str, tuple[type, ...]] = {
    "names": (list,),
    "metrics": (dict,),
    "sha256": (str,),
    "run": (str, type(None)),
    "shards": (str, type(None)),
    **dict.fromkeys(("serial", "global_step", "epoch", "shards_size"), (int,)),
}


@dataclass(frozen=True)
class Trailer:
    """The description that a checkpoint file has of itself.

    Attributes:
        names: The names it was committed under.
        serial: The number of the commit in its run; of two files the one with the higher is newer.
        global_step: Optimizer steps completed.
        epoch: Epochs completed.
        run: uuid of the run, if it has one.
        metrics: Numbers for the choice of what to keep.
        shards: The directory with the shards of the checkpoint, if it has any.
        shards_size: Their bytes.
        sha256: The digest of everything before the trailer; it identifies the content.
    """

    names: tuple[str, ...]
    serial: int
    global_step: int
    epoch: int
    run: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    shards: str | None = None
    shards_size: int = 0
    sha256: str = "0" * _DIGEST_SIZE

    def encoded(self) -> bytes:
        values = asdict(self)
        values["metrics"] = {
            name: value if math.isfinite(value) else str(value)
            for name, value in self.metrics.items()
        }
        line = json.dumps(values, allow_nan=False).encode("ascii")
        comment = line + hashlib.sha256(line).hexdigest().encode("ascii")
        if len(comment) > _MAX_COMMENT:
            raise CheckpointError(
                f"cannot be saved: {len(self.metrics)} metrics are too many for a checkpoint"
            )
        return comment

    @classmethod
    def decoded(cls, comment: bytes) -> Trailer | None:
        """The trailer that these bytes are, or None."""
        line, digest = comment[:-_DIGEST_SIZE], comment[-_DIGEST_SIZE:]
        if hashlib.sha256(line).hexdigest().encode("ascii") != digest:
            return None
        try:
            values = loads(line)
            return _checked(values)
        except (ConfigError, AttributeError, LookupError, TypeError, ValueError, OverflowError):
            return None


def _checked(values: Mapping[str, Any]) -> Trailer:
    """The trailer of these values, which are of the keys and types that we write.

    Raises:
        ValueError: A value is of another key or type (or another error of Python's that says so).
    """
    wrong = [key for key, value in values.items() if not isinstance(value, _KINDS[key])]
    wrong += [key for key in _KINDS if isinstance(values.get(key), bool)]
    counts = [values.get(key, 0) for key in ("serial", "global_step", "epoch", "shards_size")]
    names = values["names"]
    if wrong or not all(isinstance(name, str) for name in names):
        raise ValueError(f"not of a trailer: {wrong}")
    if not all(0 <= count < 1 << 63 for count in counts):
        raise ValueError(f"not counts: {counts}")
    metrics = {name: float(value) for name, value in values["metrics"].items()}
    return Trailer(**{**values, "names": tuple(names), "metrics": metrics})


class Sealer(HashedFile):
    """File object for `torch.save` that hashes what it writes, and ends it with a trailer."""

    _kept = _END_SIZE  # the last record waits: the length of the trailer goes into it

    def seal(self, trailer: Trailer) -> Trailer:
        """Writes the last record and the trailer, which is returned with the digest in it.

        Raises:
            OSError: The file cannot be written.
            CheckpointError: `torch.save` did not end in the last record of a zip archive.
        """
        end = self._pending[-_END_SIZE:]
        if not end.startswith(_END) or end[-2:] != b"\0\0":
            raise CheckpointError("torch.save wrote something else than a zip archive")
        self._pending[-2:] = len(trailer.encoded()).to_bytes(2, "little")
        _, digest = self.finish()
        sealed = replace(trailer, sha256=digest)
        self._emit(sealed.encoded(), owned=True)
        return sealed

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        failpoint("checkpoint.before_write")
        super()._write(data)


def read_trailer(file: BinaryIO) -> tuple[Trailer | None, int]:
    """Reads the trailer of an open file, and the number of bytes before it.

    None for a file without one that is intact: it is damaged, or was written by something else.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _END_SIZE - _MAX_COMMENT))
    tail = file.read()
    start = tail.rfind(_END)
    comment = tail[start + _END_SIZE :]
    recorded = int.from_bytes(tail[start + _END_SIZE - 2 : start + _END_SIZE], "little")
    if start < 0 or len(comment) != recorded or len(comment) <= _DIGEST_SIZE:
        return None, size
    return Trailer.decoded(comment), size - len(comment)


def is_unsealed(file: BinaryIO) -> bool:
    """Whether a file ends as one does that never had a trailer, such as torch's own.

    A file with neither has lost its end.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _END_SIZE))
    end = file.read()
    return end.startswith(_END) and end.endswith(b"\0\0")
