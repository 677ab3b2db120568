"""A file of metrics that is kept in step with a run and its checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from danling.logs import Attempts
from danling.run.metrics_file import MetricsFile

__all__ = ["MetricsLog"]


_FLUSH_SECONDS: Final = 10.0


class MetricsLog:
    """Adds the logged values of a run to a file, and goes on in it where a checkpoint left off.

    A file that cannot be written ends no training: the first failure is a warning, and what was not
    written is tried again with the next flush.

    Args:
        what: The name of what is written, for the warnings.

    Attributes:
        attempts: Catches and counts the failures.

    Example:
        >>> log = MetricsLog("writing metrics.jsonl")
        >>> log.open(MetricsFile(getfixture("tmp_path") / "metrics.jsonl"), 0, logging.getLogger())
        >>> log.add(50, 0, {"train/loss": 0.5}, logging.getLogger())
        >>> log.state_dict()
        {'rows': 1}
        >>> log.close(logging.getLogger())
    """

    def __init__(self, what: str) -> None:
        self.attempts = Attempts(what)
        self._file: MetricsFile | None = None
        self._rows: int | None = None
        self._flushed = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._file is not None

    def reset(self) -> None:
        """Forget another run."""
        self._file, self._rows = None, None

    def open(
        self,
        file: MetricsFile,
        global_step: int,
        logger: logging.Logger,
        aside: str | os.PathLike[str] | None = None,
    ) -> None:
        """Take a file into use, cut back to a step and to what `load_state_dict` was given.

        Args:
            file: The file.
            global_step: The step from which the run goes on.
            logger: The logger of the warning that the file cannot be used.
            aside: A file to which the removed rows are moved.
        """
        with self.attempts.caught(logger):
            if self._file is not None:
                self._file.close()
            file.cut(global_step, self._rows, aside)
            self._file = file
        self._rows = None
        self._flushed = time.monotonic()

    def add(
        self, global_step: int, epoch: int, metrics: Mapping[str, float], logger: logging.Logger
    ) -> None:
        """Add a row, and write to the disk when the last time was 10 seconds ago."""
        if self._file is None:
            return
        now = round(time.time(), 3)
        self._file.append({"global_step": global_step, "epoch": epoch, "time": now, **metrics})
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush(logger)

    def flush(self, logger: logging.Logger) -> None:
        """Write all rows to the disk."""
        if self._file is not None:
            with self.attempts.caught(logger):
                self._file.flush()
            self._flushed = time.monotonic()

    def close(self, logger: logging.Logger) -> None:
        """Write all rows to the disk, close the file, and log the number of failures."""
        if self._file is not None:
            with self.attempts.caught(logger):
                self._file.close()
            self._file = None
        self.attempts.report(logger)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows, all of which are on the disk now."""
        if self._file is None:
            return {}
        with contextlib.suppress(OSError):  # the next flush warns
            self._file.flush()
        return {"rows": self._file.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the number of rows, to which `open` cuts the file."""
        self._rows = state.get("rows")
