"""`metrics.jsonl`: one row per log, only ever appended, and cut back when a run is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import IO, Any

from danling.files.json import dumps

__all__ = ["MetricsFile", "read_metrics"]


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
        >>> [row["global_step"] for row in file.cut(50)]
        [100]
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

    def cut(self, global_step: int, rows: int | None = None) -> list[dict[str, Any]]:
        """Remove what was logged after a moment, to which a run went back.

        Args:
            global_step: Rows of later steps are removed.
            rows: How many rows there were at that moment, where it is known: an evaluation may log
                after the checkpoint of the same step.

        Returns:
            The rows that were removed.

        Raises:
            OSError: The file cannot be read or written.
        """
        self.close()
        self.rows = 0
        if not self.path.exists():
            return []
        with open(self.path, "rb+") as file:
            end = 0
            for line in file:
                if not _is_kept(line, global_step) or self.rows == rows:
                    break
                end += len(line)
                self.rows += 1
            file.seek(end)
            abandoned = [row for line in file if (row := _parse(line)) is not None]
            file.truncate(end)
        return abandoned


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    r"""The rows of a metrics file, in order, without a half line that a killed process left.

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
    with open(path, "rb") as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _is_kept(line: bytes, global_step: int) -> bool:
    row = _parse(line)
    if row is None:  # unreadable: kept where it is, unless it is the half line at the end
        return line.endswith(b"\n")
    step = row.get("global_step")
    return not isinstance(step, int) or step <= global_step


def _write(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
