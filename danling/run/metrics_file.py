"""`metrics.jsonl`: one row per log, only ever appended, and cut back when a run is resumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import IO, Any

from danling.errors import ConfigError
from danling.files.json import dumps, loads

__all__ = ["MetricsFile", "read_metrics"]


_PIECE = 1 << 20
_LONGEST = 1 << 24  # bytes of a row; no line of a file is held in memory that is longer
_logger = logging.getLogger(__name__)


class MetricsFile:
    """A file of JSON rows: `append` keeps them in memory, `flush` writes them, whole lines at once.

    A process that is killed loses the rows of the last flush interval, and at worst leaves a half
    line at the end, which readers skip and `cut` removes. The cost of a row does not depend on how
    many there are.

    Args:
        path: The file; it is made by the first `flush`.

    Example:
        >>> file = MetricsFile(getfixture("tmp_path") / "metrics.jsonl")
        >>> file.append({"global_step": 50, "train/loss": 0.5})
        >>> file.append({"global_step": 100, "train/loss": float("nan")})
        >>> file.close()
        >>> print(file.path.read_text(), end="")
        {"global_step": 50, "train/loss": 0.5}
        {"global_step": 100, "train/loss": "NaN"}
        >>> file.cut(50)
        1
        >>> [row["global_step"] for row in read_metrics(file.path)]
        [50]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rows = 0
        """Rows appended, those in the file before included once `cut` has counted them."""
        self._pending: list[bytes] = []
        self._file: IO[bytes] | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; NaN and infinities become strings.

        Raises:
            ConfigError: A value is not JSON-serialisable.
        """
        finite = all(
            type(value) is int or (type(value) is float and isfinite(value))
            for value in row.values()
        )
        # what is mostly so needs no copy to be made safe, which costs more than the text
        line = json.dumps(row) if finite else dumps(row)
        self._pending.append(f"{line}\n".encode())
        self.rows += 1

    def flush(self) -> None:
        """Write the rows that are not in the file yet.

        Raises:
            OSError: They cannot be written: the file is as before, and the next flush tries again.
        """
        if not self._pending:
            return
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # open as long as the run
        end = self._file.seek(0, os.SEEK_END)
        data = b"".join(self._pending)
        try:
            _write(self._file, data)
        except OSError:
            self._file.truncate(end)  # a full disk may have taken a part
            raise
        self._pending.clear()

    def close(self) -> None:
        """Flush, and close the file.

        Raises:
            OSError: As `flush`; the file is closed all the same.
        """
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def cut(
        self,
        global_step: int,
        rows: int | None = None,
        abandoned: str | os.PathLike[str] | None = None,
    ) -> int:
        """Remove what was logged after a moment, to which a run went back.

        The file is read from its end, in pieces: the time depends on what is removed, and the
        memory on nothing.

        Args:
            global_step: Rows of later steps are removed.
            rows: The number of rows there were at that moment, where it is known: an evaluation
                may log after the checkpoint of the same step.
            abandoned: A file to which the rows that are removed are appended first.

        Returns:
            The number of rows that were removed.

        Raises:
            OSError: A file cannot be read or written.
        """
        self.close()
        self.rows = 0
        if not self.path.exists():
            return 0
        with open(self.path, "rb+") as file:
            end, self.rows = _first_lines(file, _end_of_steps(file, global_step), rows)
            removed = _copy_lines(file, end, abandoned)
            file.truncate(end)
        return removed


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    r"""The rows of a metrics file, in order, without a half line that a killed process left.

    NaN and infinities, which are strings in the file, are numbers. Lines that cannot be read are
    skipped, with one warning that names the file.

    Args:
        path: The file, which may be written to by a run meanwhile.

    Raises:
        OSError: The file cannot be read.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.jsonl"
        >>> _ = path.write_text('{"global_step": 50, "train/loss": 0.5}\n{"global_st')
        >>> list(read_metrics(path))
        [{'global_step': 50, 'train/loss': 0.5}]
    """
    unread = 0
    with open(path, "rb") as file:
        for line in _lines(file):
            row = _parse(line)
            if row is not None:
                yield row
            elif line.endswith(b"\n"):
                unread += 1
    if unread:
        _logger.warning("%s: %d damaged lines were skipped", path, unread)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, none longer than a row can be: what is longer comes in pieces."""
    while line := file.readline(_LONGEST):
        yield line


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = loads(line)
    except ConfigError:
        return None
    return row if isinstance(row, dict) else None


def _end_of_steps(file: IO[bytes], global_step: int) -> int:
    """Where the rows of later steps begin; a half line at the end is one of them.

    Steps never fall within a file, so that one row tells of all that are after it: a piece whose
    first row goes is not parsed. A line that cannot be read stays, unless the row before it goes.
    """
    end = high = file.seek(0, os.SEEK_END)
    while high > 0:
        low = _line_start(file, high)
        file.seek(low)
        if low and _is_later(file.readline(_LONGEST), global_step):
            end = high = low
            continue
        file.seek(low)
        place = high
        for line in reversed(_split(file.read(high - low))):
            place -= len(line)
            if _is_later(line, global_step):
                end = place
            elif _step(line) is not None:
                return end
        high = low
    return end


def _line_start(file: IO[bytes], high: int) -> int:
    """The place of a line about a piece before another place."""
    for length in (_PIECE, _LONGEST):
        low = high - length
        if low <= 0:
            return 0
        file.seek(low)
        low += len(file.readline(length))
        if low < high:
            return low
    return high - _LONGEST  # within a line that is longer than any row


def _step(line: bytes) -> int | None:
    row = _parse(line)
    step = None if row is None else row.get("global_step")
    return step if type(step) is int else None


def _is_later(line: bytes, global_step: int) -> bool:
    """Whether a line is to go: of a later step, or not ended."""
    step = _step(line)
    return not line.endswith(b"\n") if step is None else step > global_step


def _split(piece: bytes) -> list[bytes]:
    """Lines that end in a line feed alone."""
    *whole, last = piece.split(b"\n")
    return [line + b"\n" for line in whole] + ([last] if last else [])


def _first_lines(file: IO[bytes], end: int, limit: int | None) -> tuple[int, int]:
    """Where the first lines before `end` end, at most `limit` of them, and their number."""
    file.seek(0)
    place = count = 0
    while place < end and (piece := file.read(min(_PIECE, end - place))):
        found = piece.count(b"\n")
        if limit is not None and count + found >= limit:
            last = -1
            for _ in range(limit - count):
                last = piece.index(b"\n", last + 1)
            return place + last + 1, limit
        count += found
        place += len(piece)
    return place, count


def _copy_lines(file: IO[bytes], start: int, path: str | os.PathLike[str] | None) -> int:
    """Append what is after `start` to another file, if there is one, and count its lines."""
    if file.seek(0, os.SEEK_END) == start:
        return 0
    file.seek(start)
    piece, count, last = b"", 0, b""
    with open(os.devnull if path is None else path, "ab") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
            count += piece.count(b"\n")
            last = piece[-1:]
        if last not in (b"", b"\n"):  # a half line: what is appended later begins a line
            copy.write(b"\n")
    return count


def _write(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
