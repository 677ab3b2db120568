"""The options that say which runs, and the runs that they mean."""

from __future__ import annotations

import argparse
from typing import Any

from danling.cli.output import Output
from danling.experiments.collection import Runs, runs
from danling.experiments.run import Run
from danling.experiments.selection import select_one

__all__ = ["add_choice", "add_metric", "add_run", "chosen", "chosen_run", "note_passed_over"]


def add_choice(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The options of a verb that takes several runs."""
    parser.add_argument(
        "selection", nargs="+" if required else "*", metavar="RUN", help="id, name, path, @word"
    )
    parser.add_argument("-F", "--filter", metavar="EXPR", action="append", default=[])
    parser.add_argument("-s", "--sort", metavar="KEY", action="append", default=[])
    parser.add_argument("-n", "--limit", metavar="N", type=int, help="the first N alone")


def add_run(parser: argparse.ArgumentParser, name: str = "selection") -> None:
    """The argument of a verb that takes one run."""
    parser.add_argument(name, metavar="RUN", help="id, name, path, @word")


def add_metric(parser: argparse.ArgumentParser) -> None:
    """The options that say what is better."""
    parser.add_argument("-m", "--metric", metavar="METRIC", help="val.accuracy (the monitor)")
    parser.add_argument("--mode", choices=("min", "max"), help="whether lower or higher is better")


def chosen(options: Any, output: Output) -> Runs:
    """The runs that the options select; all, where they name none.

    Raises:
        DanLingError: The errors of `runs`, `select`, `Runs.filter` and `Runs.sort`.
    """
    found = runs(options.root)
    note_passed_over(found, output)
    if options.selection:
        found = found.select(*options.selection)
    found = found.filter(*options.filter).sort(*options.sort)
    return found if options.limit is None else found[: max(options.limit, 0)]


def chosen_run(options: Any, word: str) -> Run:
    """The run that a word selects."""
    return select_one(runs(options.root), word)


def note_passed_over(found: Runs, output: Output) -> None:
    """Say in one line what could not be read."""
    others = found.passed_over
    if others and not output.json:
        from danling.experiments.values import one_line

        told = "; ".join(f"{one_line(o.path.name)}: {one_line(o.reason)}" for o in others[:3])
        more = f"; and {len(others) - 3} more (danling ls --passed-over)" if len(others) > 3 else ""
        noun = "entry was" if len(others) == 1 else "entries were"
        output.message(f"{len(others)} {noun} passed over: {told}{more}")
