"""Saves in the background, one at a time.

The training thread takes a snapshot and goes on; the write, the commit and the rotation run in a
thread. What they return, and what they raise, comes back on the training thread when it asks:
callbacks are not thread-safe, and an error of a save belongs to the next step, not to the next
save. The thread is not a daemon, so that a normal exit of Python waits for it: a daemon thread
loses the checkpoint on an exception, on `sys.exit` and on Ctrl-C.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

from danling.errors import CheckpointError

__all__ = ["AsyncWriter"]

T = TypeVar("T")

_NOTICEABLE = 1.0  # seconds of waiting that are worth a line in the log
_logger = logging.getLogger(__name__)


class AsyncWriter(Generic[T]):
    """Runs one job at a time in a thread of its own; the next one waits for it.

    In a process that was forked from the one that submitted a job, nothing is under way and nothing
    was completed: the job goes on in the parent, and only there.

    Args:
        timeout: Seconds for which `submit` and `drain` wait for the job under way; None: for ever.

    Example:
        >>> writer = AsyncWriter[str]()
        >>> writer.submit(lambda: "epoch-1.pth")
        >>> writer.drain()
        >>> writer.completed()
        ['epoch-1.pth']
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._process = os.getpid()
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._results: list[T] = []

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._ours() and self._thread is not None and self._thread.is_alive()

    def submit(self, job: Callable[[], T]) -> None:
        """Starts a job once the one before has ended.

        Raises:
            CheckpointError: The one before does not end in time (`errno` is ETIMEDOUT).
            Exception: What the one before raised, if `check` did not raise it yet; `job` is not
                started then.
        """
        self._join(self._timeout)
        self.check()
        self._thread = Thread(target=self._run, args=(job,), name="danling-writer", daemon=False)
        self._thread.start()

    def check(self) -> None:
        """Raises, once, what a job raised: to be called at every step."""
        if self._error is not None and self._ours():
            error, self._error = self._error, None
            raise error

    def completed(self) -> list[T]:
        """What the jobs that ended well returned, in their order, each once."""
        results: list[T] = []
        while self._results and self._ours():
            results.append(self._results.pop(0))
        return results

    def collect(self) -> list[T]:
        """What jobs returned since the last call, once the one under way has ended.

        Raises:
            Exception: As `drain`.
        """
        self.drain()
        return self.completed()

    def drain(self, timeout: float | None = None) -> None:
        """Waits until nothing is under way, then does as `check`.

        Args:
            timeout: Seconds, in place of the writer's own.

        Raises:
            CheckpointError: The job does not end in time; it still goes on.
            Exception: What it raised.
        """
        self._join(self._timeout if timeout is None else timeout)
        self.check()

    def _run(self, job: Callable[[], T]) -> None:
        try:
            self._results.append(job())
        except BaseException as error:
            self._error = error

    def _join(self, timeout: float | None) -> None:
        if not self._ours():
            self._process, self._thread, self._error = os.getpid(), None, None
            self._results.clear()
        if self._thread is None:
            return
        start = time.monotonic()
        self._thread.join(timeout)
        waited = time.monotonic() - start
        if self._thread.is_alive():
            message = f"the save before is still being written after {waited:.1f} s"
            raise CheckpointError(errno.ETIMEDOUT, message)
        if waited > _NOTICEABLE:
            _logger.info("waited %.1f s for the save before: save less often", waited)
        self._thread = None

    def _ours(self) -> bool:
        return self._process == os.getpid()
