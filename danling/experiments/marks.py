"""`marks.json`: the tags and notes that people give to a run.

They are in a file of their own, since run.json is rewritten by the process that trains.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from danling.errors import ConfigError, RunDirectoryError
from danling.experiments.reading import read_json
from danling.files.atomic import write_json

__all__ = ["Marks", "Note", "add_note", "change_tags", "read_marks"]


FILE_NAME = "marks.json"
SCHEMA = 1

_TAG = re.compile(r"[^\W_][\w.+-]{0,49}")


@dataclass(frozen=True)
class Note:
    """A remark on a run."""

    time: str
    """When it was written, in UTC."""
    text: str


@dataclass(frozen=True)
class Marks:
    """The notes of people about a run."""

    tags: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


def read_marks(directory: Path) -> Marks:
    """The tags and notes of a run; none where there is no file that can be read."""
    data: Any = None
    with suppress(OSError, ValueError):
        data = read_json(directory / FILE_NAME)
    if not isinstance(data, dict):
        return Marks()
    tags = data.get("tags")
    notes = data.get("notes")
    return Marks(
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        tuple(
            Note(str(note.get("time", "")), str(note.get("text", "")))
            for note in (notes if isinstance(notes, list) else [])
            if isinstance(note, dict)
        ),
    )


def change_tags(directory: Path, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Marks:
    """Add tags to a run and remove others.

    Raises:
        ConfigError: A text is no tag: letters, digits and `._+-`, of 50 characters at most.
        RunDirectoryError: The file cannot be written.
    """
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise ConfigError(
                f"{tag!r} is no tag: it is one word of letters, digits, '.', '_', '+' and '-'"
            )
    with _changing(directory) as marks:
        kept = [tag for tag in marks.tags if tag not in remove]
        return _write(directory, Marks(tuple(dict.fromkeys([*kept, *add])), marks.notes))


def add_note(directory: Path, text: str) -> Marks:
    """Add a remark to a run.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    with _changing(directory) as marks:
        note = Note(datetime.now(UTC).isoformat(timespec="seconds"), text)
        return _write(directory, Marks(marks.tags, (*marks.notes, note)))


@contextmanager
def _changing(directory: Path) -> Iterator[Marks]:
    """The marks as they are, while no other process changes them."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        with suppress(ImportError, OSError):  # elsewhere the later of two writers wins
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield read_marks(directory)
    finally:
        os.close(descriptor)


def _write(directory: Path, marks: Marks) -> Marks:
    path = directory / FILE_NAME
    try:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link")
        write_json(path, {"schema": SCHEMA, **asdict(marks)})
    except OSError as error:
        raise _unwritable(directory, error) from error
    return marks


def _unwritable(directory: Path, error: OSError) -> RunDirectoryError:
    reason = f"{FILE_NAME} cannot be written: {error.strerror}"
    return RunDirectoryError(error.errno, reason, str(directory))
