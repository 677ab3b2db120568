"""The metrics of a run as files of rows: `metrics.jsonl`, which is the record, and `metrics.csv`.

Both have a row per log, are only ever appended to, and are cut back when a run is resumed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from math import isfinite
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from danling.errors import ConfigError
from danling.files.atomic import write_text
from danling.files.json import dumps, loads

__all__ = ["MetricsFile", "MetricsTable", "read_metrics"]


_STEP: Final = re.compile(rb'\{"global_step": (\d{1,18})[,}]')
"""The beginning of a row of `MetricsFile`: the step is read without parsing the rest."""

_LONGEST: Final = 1 << 24
"""Bytes of a row: no longer line of a file is held in memory."""

_logger = logging.getLogger(__name__)

_FIRST_COLUMNS: Final = ("global_step", "epoch", "time")


class MetricsFile:
    """A file of JSON rows: `append` keeps them in memory, `flush` writes them, whole lines at once.

    A process that is killed loses the rows of the last flush interval. At worst it leaves a half
    line at the end, which readers skip and `cut` removes. The cost of a row does not depend on how
    many there are.

    Args:
        path: The file; it is made by the first `flush`.

    Attributes:
        rows: The number of rows that were appended, with those that `cut` has found in the file.

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
    """

    _HEADER_LINES: ClassVar = 0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rows = 0
        self._pending: list[Any] = []
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
        # most rows need no copy that is safe for JSON, which costs more than the text itself
        line = json.dumps(row) if finite else dumps(row)
        self._pending.append(f"{line}\n".encode())
        self.rows += 1

    def flush(self) -> None:
        """Write the rows that are not in the file yet.

        Raises:
            OSError: The rows cannot be written: the file is as before; the next flush tries again.
        """
        if not self._pending:
            return
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # open as long as the run
        end = self._file.seek(0, os.SEEK_END)
        data = self._encoded()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(end)  # a full disk may have taken a part
            raise
        self._pending.clear()

    def close(self) -> None:
        """Flush, and close the file.

        Raises:
            OSError: The errors of `flush`; the file is closed all the same.
        """
        try:
            self.flush()
        finally:
            self._release()

    def cut(
        self,
        global_step: int,
        rows: int | None = None,
        aside: str | os.PathLike[str] | None = None,
    ) -> int:
        """Remove what was logged after a moment to which a run went back.

        Args:
            global_step: Rows of later steps are removed.
            rows: The number of rows at that moment, where it is known: an evaluation may log after
                the checkpoint of the same step.
            aside: A file to whose end the removed rows are moved; None to drop them.

        Returns:
            The number of rows that were removed; a half line is none.

        Raises:
            OSError: A file cannot be read or written.
        """
        self.close()
        self.rows = 0
        if not self.path.exists():
            return 0
        most = None if rows is None else rows + self._HEADER_LINES
        with open(self.path, "rb+") as file:
            end, kept = _kept(file, most, lambda line: self._is_kept(line, global_step))
            self.rows = max(kept - self._HEADER_LINES, 0)
            removed = _move_rest(file, end, aside)
            file.truncate(end)
        return removed

    def _encoded(self) -> bytes:
        """The pending rows as they are in the file."""
        return b"".join(self._pending)

    def _is_kept(self, line: bytes, global_step: int) -> bool:
        """Whether a line stays; one that cannot be read does, where it is a whole line."""
        found = _STEP.match(line)
        if found and line.endswith(b"}\n"):
            return int(found[1]) <= global_step
        row = _parse(line)
        if row is None:
            return line.endswith(b"\n")
        step = row.get("global_step")
        return not isinstance(step, int) or step <= global_step

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class MetricsTable(MetricsFile):
    """The metrics as a table of comma-separated values, for spreadsheets and pandas.

    Every row has all columns. A tag that comes later is a column at the end: the file is replaced,
    in one step, by one whose earlier rows are filled up. That costs the time of writing the file
    once per flush that has new tags, and nothing otherwise.

    Example:
        >>> table = MetricsTable(getfixture("tmp_path") / "metrics.csv")
        >>> table.append({"global_step": 1, "epoch": 0, "time": 9.5, "train/loss": 0.5})
        >>> table.flush()
        >>> table.append({"global_step": 2, "epoch": 0, "time": 9.7, "train/late": 1.0})
        >>> table.close()
        >>> print(table.path.read_text(), end="")
        global_step,epoch,time,train/loss,train/late
        1,0,9.5,0.5,
        2,0,9.7,,1.0
    """

    _HEADER_LINES: ClassVar = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._columns = dict.fromkeys(_FIRST_COLUMNS)  # an ordered set
        self._written = 0  # columns of the file

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; NaN is `nan`, and what is missing is empty."""
        self._columns |= dict.fromkeys(row)
        self._pending.append(dict(row))
        self.rows += 1

    def flush(self) -> None:
        """Write the rows that are not in the file yet.

        Raises:
            OSError: The rows cannot be written: the file is as before; the next flush tries again.
        """
        if self._pending and self._written < len(self._columns):
            self._release()  # the file is another one afterwards
            missing = "," * (len(self._columns) - self._written)
            lines = [line.rstrip("\n") + missing + "\n" for line in self._lines()]
            write_text(self.path, _csv([self._columns]) + "".join(lines))
            self._written = len(self._columns)
        super().flush()

    def cut(
        self,
        global_step: int,
        rows: int | None = None,
        aside: str | os.PathLike[str] | None = None,
    ) -> int:
        """Cut as `MetricsFile.cut` does; columns that have no value any more are removed, too."""
        removed = super().cut(global_step, rows, aside)
        if not self.path.exists():
            return removed
        with open(self.path, encoding="utf-8", newline="") as file:
            header, *kept = list(csv.reader(file)) or [list(_FIRST_COLUMNS)]
        table = zip_longest(header, *kept, fillvalue="")
        columns = [(tag, *cells) for tag, *cells in table if tag in _FIRST_COLUMNS or any(cells)]
        whole = list(zip(*columns, strict=True))
        write_text(self.path, _csv(whole))
        self._columns = dict.fromkeys(whole[0])
        self._written = len(self._columns)
        return removed

    def _encoded(self) -> bytes:
        return _csv([row.get(tag, "") for tag in self._columns] for row in self._pending).encode()

    def _is_kept(self, line: bytes, global_step: int) -> bool:
        step = line.partition(b",")[0]
        is_whole = line.endswith(b"\n")
        return is_whole and (not step.isdigit() or int(step[:18]) <= global_step)

    def _lines(self) -> list[str]:
        """The rows of the file, without its header."""
        if not self._written or not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return file.readlines()[1:]


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


def _kept(file: IO[bytes], most: int | None, is_kept: Callable[[bytes], bool]) -> tuple[int, int]:
    """The offset at which the lines that stay end, and their number."""
    end = count = 0
    for line in _lines(file):
        if count == most or not is_kept(line):
            break
        end += len(line)
        count += 1
    return end, count


def _move_rest(file: IO[bytes], start: int, aside: str | os.PathLike[str] | None) -> int:
    """Count the whole lines from a place on, and copy them to the end of another file."""
    file.seek(start)
    lines = (line for line in _lines(file) if line.endswith(b"\n"))
    first = next(lines, None)
    if first is None or aside is None:
        return (first is not None) + sum(1 for _ in lines)
    Path(aside).parent.mkdir(parents=True, exist_ok=True)
    with open(aside, "ab") as target:
        return sum(target.write(line) > 0 for line in chain([first], lines))


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
