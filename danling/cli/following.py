"""`logs` and `watch`: runs while they run."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from danling.cli.choosing import add_choice, add_run, chosen, chosen_run
from danling.cli.listing import list_runs
from danling.cli.output import Output
from danling.experiments.run import Run
from danling.experiments.values import one_line

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "logs": "  danling logs @1\n  danling logs @1 -f             until the run ends",
    "watch": "  danling watch\n  danling watch @running --every 10",
}

_POLL = 0.3  # seconds between two looks at a log


def add_logs(parser: argparse.ArgumentParser) -> None:
    """The options of `logs`."""
    add_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="the last N (50)")


def run_logs(options: Any, output: Output) -> int:
    """The log of a run."""
    run = chosen_run(options, options.selection)
    lines = run.log(max(options.lines, 0))
    if output.json:
        output.data({"id": run.id, "lines": lines})
        return 0
    end = _size(run)
    for line in lines:
        output.line(one_line(line))
    if options.follow:
        _follow(run, end, output)
    elif not lines:
        output.message(
            f"{run.id} has written no log yet; danling show {run.id} tells how it stands"
        )
        return 1
    return 0


def _size(run: Run) -> int:
    try:
        return os.stat(run.paths.log).st_size
    except OSError:
        return 0


def _follow(run: Run, position: int, output: Output) -> None:
    """Print what is added to the log, until nobody works on the run any more."""
    while True:
        is_running = run.is_running  # asked before reading: the last lines are not missed
        if _size(run) > position:
            with open(run.paths.log, "rb") as file:
                file.seek(position)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1] if is_running else new
            position += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                print(one_line(line), flush=True)
        if not is_running:
            return
        time.sleep(_POLL)


def add_watch(parser: argparse.ArgumentParser) -> None:
    """The options of `watch`."""
    add_choice(parser)
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="(2)")


def run_watch(options: Any, output: Output) -> int:
    """A table of runs that keeps up with them until none is running."""
    while True:
        found = chosen(options, output)
        is_live = any(run.is_running for run in found)
        if output.json:
            output.data([{"id": r.id, "status": r.status, "latest": r.latest} for r in found])
        else:
            if output.is_terminal and is_live:
                output.text("\x1b[H\x1b[2J")
            list_runs(found, output, ["epoch"])
        if not is_live:
            return 0 if len(found) else 1
        time.sleep(max(options.every, 0.1))
