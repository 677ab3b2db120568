"""Errors of the processes that read data, with the data that they were reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["told"]


def told(batches: Iterator[Any], reading: str, first: int) -> Iterator[Any]:
    """The batches; an error on the way to the next one says which one it was.

    What PyTorch raises for a worker that was killed, or that took too long, tells neither.

    Args:
        batches: From a `DataLoader` with workers.
        reading: Which data it is.
        first: Number of the first batch.

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
        error.add_note(f"while batch {number} of {reading} was read")
        raise
