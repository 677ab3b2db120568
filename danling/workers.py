"""Errors of the processes that read data, with the data that they were reading."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from danling.errors import DataError

__all__ = ["told"]

_NOTICING = 1.0  # seconds for the signal of a process that is ending


def told(batches: Iterator[Any], reading: str, first: int) -> Iterator[Any]:
    """The batches; an error on the way to the next one says which one it was.

    What PyTorch raises for a worker that was killed, or that took too long, tells neither.

    Args:
        batches: From a `DataLoader` with workers.
        reading: Which data it is.
        first: Number of the first batch.

    Raises:
        DataError: A worker is gone, and PyTorch has not noticed it yet.

    Example:
        >>> list(told(iter("ab"), "'train'", 0))
        ['a', 'b']
    """
    number = first
    try:
        for batch in batches:
            yield batch
            number += 1
    except Exception as error:
        # the pipe to a worker is broken; what a dataset raises there names the worker
        if isinstance(error, (ConnectionError, EOFError)) and "DataLoader worker" not in str(error):
            raise DataError(
                f"a DataLoader worker has ended while batch {number} of {reading} was read: it was "
                "killed, perhaps for want of memory"
            ) from _death(error)
        error.add_note(f"while batch {number} of {reading} was read")
        raise


def _death(error: Exception) -> Exception:
    """What PyTorch raises where the signal finds the program: here, and not in a hook later."""
    try:
        time.sleep(_NOTICING)
    except RuntimeError as death:
        return death
    return error
