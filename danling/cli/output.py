"""Data on stdout, messages on stderr: tables, colours, JSON."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from danling.experiments.values import one_line
from danling.files.json import dumps

__all__ = ["SCHEMA", "Output"]


SCHEMA = "danling/1"
"""The version of the schema in the JSON of every verb."""

_CODES = {
    "finished": "32",
    "stopped": "32",
    "running": "36",
    "failed": "31",
    "killed": "31",
    "preempted": "33",
    "interrupted": "33",
    "good": "32",
    "bad": "31",
    "title": "1",
}


class Output:
    """The output of a verb.

    Args:
        json: Whether data is printed as JSON.
        no_color: Whether there are no colours even on a terminal.
    """

    def __init__(self, json: bool = False, no_color: bool = False) -> None:
        self.json = json
        self.is_terminal = sys.stdout.isatty()
        forced = bool(os.environ.get("FORCE_COLOR"))
        plain = no_color or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self.colours = (self.is_terminal or forced) and not plain
        for stream in (sys.stdout, sys.stderr):
            # a name that the terminal's encoding lacks is no reason to fail
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    @property
    def width(self) -> int:
        """Columns of the terminal; 0 where lines are not cut: in a pipe or a file."""
        return shutil.get_terminal_size().columns if self.is_terminal else 0

    def data(self, value: Any) -> None:
        """Print the data of a verb as JSON."""
        print(dumps({"schema": SCHEMA, "data": value}, indent=2))

    def line(self, text: str = "") -> None:
        """Print a line of data."""
        print(text)

    def text(self, text: str) -> None:
        """Print text as it is."""
        sys.stdout.write(text)

    def flush(self) -> None:
        """Print what is not printed yet, before another process prints."""
        sys.stdout.flush()

    def message(self, text: str) -> None:
        """Print a message."""
        print(text, file=sys.stderr)

    def error(self, text: str) -> None:
        """Print an error; names in it cannot reach the terminal raw."""
        lines = [one_line(line) for line in text.split("\n")]
        print("danling: " + "\n".join(lines), file=sys.stderr)

    def paint(self, text: str, colour: str) -> str:
        """Text in a colour, where there are colours."""
        code = _CODES.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code else text

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under their names, each as wide as it must be.

        On a terminal lines are cut at its width; a column without any value is left out. Cells that
        are the name of a status are coloured.
        """
        kept_rows = [[one_line(cell) for cell in row] for row in rows]
        columns = list(zip(*kept_rows, strict=True)) if kept_rows else [()] * len(head)
        places = [p for p, column in enumerate(columns) if any(column) or not kept_rows]
        names = [one_line(head[place]) for place in places]
        widths = [
            max([_columns(names[n]), *(_columns(cell) for cell in columns[place])])
            for n, place in enumerate(places)
        ]
        self.line(self._row(names, widths, "title"))
        for row in kept_rows:
            self.line(self._row([row[place] for place in places], widths))

    def _row(self, cells: Sequence[str], widths: Sequence[int], colour: str = "") -> str:
        rest, parts = self.width or sys.maxsize, []
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            gap = "  " if place else ""
            shown = _cut(cell, rest - len(gap))
            is_last = place == len(cells) - 1
            padding = "" if is_last else " " * max(min(width, rest) - _columns(shown), 0)
            parts.append(gap + self.paint(shown, colour or cell) + padding)
            rest -= width + len(gap)
            if rest <= 2:
                break
        return "".join(parts).rstrip()


def _columns(text: str) -> int:
    """Cells of a terminal that a text fills."""
    if text.isascii():
        return len(text)
    wide = {"W", "F"}
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in wide)
        for char in text
    )


def _cut(text: str, width: int) -> str:
    if 2 * len(text) <= width or _columns(text) <= width:  # a character fills two at most
        return text
    while text and _columns(text) > max(width - 1, 0):
        text = text[:-1]
    return f"{text}…" if width > 0 else ""
