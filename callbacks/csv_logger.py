"""The metrics as a table."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.files.atomic import write_text
from danling.logs import Attempts

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["CSVLogger"]

_FLUSH_SECONDS = 10.0
_FIRST_COLUMNS = ("global_step", "epoch", "time")


class CSVLogger(Callback):
    """Write the metrics to `metrics.csv` in the run's directory, for spreadsheets and pandas.

    A row per log, a column per tag; what was not logged is empty, NaN is `nan`. A tag that appears
    later becomes a column at the end. A resumed run cuts the table back to its checkpoint. On a
    full disk the training goes on, with a warning.

    Example:
        >>> CSVLogger().name
        'csv_logger'
    """

    name = "csv_logger"
    priority = Priority.HIGH

    def __init__(self) -> None:
        self._table: _Table | None = None
        self._rows: int | None = None
        self._flushed = 0.0
        self._attempts = Attempts("writing metrics.csv")

    def on_setup(self, runner: Runner) -> None:
        """Start anew: the file is opened when it is known where the run goes on."""
        self._table, self._rows = None, None

    def on_load(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Cut the table back to the checkpoint."""
        if runner.in_run:
            self._open(runner)

    def on_train_start(self, runner: Runner) -> None:
        """Open the table of a run that was not resumed."""
        if self._table is None:
            self._open(runner)

    def on_log(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Add a row."""
        if self._table is None:
            return
        now = round(time.time(), 3)
        row = {"global_step": runner.global_step, "epoch": runner.epoch, "time": now}
        self._table.append(row | dict(metrics))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush(runner)

    def on_epoch_end(self, runner: Runner) -> None:
        """Make the rows durable."""
        self._flush(runner)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """Make the last rows before an error durable."""
        self._flush(runner)

    def on_teardown(self, runner: Runner) -> None:
        """Write the rows that are not written yet."""
        self._flush(runner)
        self._table = None
        self._attempts.report(runner.logger)

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are, all of which are on the disk now."""
        if self._table is None:
            return {}
        with contextlib.suppress(OSError):  # the next flush says so
            self._table.flush()
        return {"rows": self._table.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back how many rows there were."""
        self._rows = state.get("rows")

    def _open(self, runner: Runner) -> None:
        if not (runner.is_main_process and runner.has_dir):
            return
        with self._attempts.caught(runner.logger):
            table = _Table(runner.dir / "metrics.csv")
            table.cut(runner.global_step, self._rows)
            self._table = table
        self._rows = None
        self._flushed = time.monotonic()

    def _flush(self, runner: Runner) -> None:
        if self._table is not None:
            with self._attempts.caught(runner.logger):
                self._table.flush()
            self._flushed = time.monotonic()


class _Table:
    """A CSV file to which rows and columns are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._columns = list(_FIRST_COLUMNS)
        self._columns_written = 0
        self._pending: list[Mapping[str, Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        self._columns += [tag for tag in row if tag not in self._columns]
        self._pending.append(row)
        self.rows += 1

    def flush(self) -> None:
        if not self._pending:
            return
        values = [[row.get(tag, "") for tag in self._columns] for row in self._pending]
        if len(self._columns) == self._columns_written:
            _append(self.path, _text(values))
        else:
            before = self._read()
            write_text(self.path, _text([self._columns, *before, *values]))
            self._columns_written = len(self._columns)
        self._pending.clear()

    def cut(self, global_step: int, rows: int | None) -> None:
        """Keep the rows up to a step, and of them no more than there were at that moment."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8", newline="") as file:
            self._columns = next(csv.reader(file), self._columns)
        kept = [row for row in self._read() if row[0].isdigit() and int(row[0]) <= global_step]
        # and the columns that have a value in them
        table = zip_longest(self._columns, *kept[:rows], fillvalue="")
        columns = [(tag, *cells) for tag, *cells in table if tag in _FIRST_COLUMNS or any(cells)]
        self._columns, *kept = (list(row) for row in zip(*columns, strict=True))
        write_text(self.path, _text([self._columns, *kept]))
        self.rows, self._columns_written = len(kept), len(self._columns)

    def _read(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if row][1:]


def _append(path: Path, text: str) -> None:
    """All of it or nothing: what does not fit on the disk is written again later."""
    with open(path, "ab", buffering=0) as file:
        data, end = text.encode(), file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def _text(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
