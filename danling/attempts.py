"""Doing what a training can do without: a failure is a warning, the first time, and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Attempts"]


class Attempts:
    """Catches the failures of decoration, such as images for a page or rows for a server.

    Errors of any kind are caught here and nowhere else: what the libraries of others raise when a
    network is down, a disk full or a figure malformed cannot be listed, and none of it is worth a
    training. The first failure is told in full, the number of all by `report`.

    Args:
        what: Is attempted, for the messages.
        strict: Whether failures are raised all the same.

    Attributes:
        failures: How many there were since the last report.

    Example:
        >>> attempts = Attempts("the page")
        >>> with attempts.caught(logging.Logger("example")):
        ...     raise ConnectionError("no route to host")
        >>> attempts.failures
        1
    """

    def __init__(self, what: str, *, strict: bool = False) -> None:
        self.what = what
        self.strict = strict
        self.failures = 0

    @contextmanager
    def caught(self, logger: logging.Logger) -> Iterator[None]:
        """Catch an exception of the block, unless it is strict; never KeyboardInterrupt."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self.failures += 1
            if self.failures == 1:
                kind = type(error).__name__
                logger.warning(
                    "%s failed, and the training goes on: %s: %s", self.what, kind, error
                )

    def report(self, logger: logging.Logger) -> None:
        """Say how many failures there were, where it was more than the one told, and count anew."""
        if self.failures > 1:
            logger.warning("%s failed %d times", self.what, self.failures)
        self.failures = 0
