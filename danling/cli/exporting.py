"""`export` and `report`: runs as files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from danling.cli.choosing import add_choice, chosen
from danling.cli.output import Output
from danling.errors import RunDirectoryError
from danling.experiments.reports.tables import FORMATS, formatted, history_rows, seed_table
from danling.files.atomic import write_text

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "export": """\
  danling export > runs.csv
  danling export --format latex --seeds -m val.accuracy    a table for a paper
  danling export --history val.loss --format jsonl""",
    "report": "  danling report @all -o report.html\n  danling report -F 'age < \"7d\"'",
}


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add_choice(parser)
    parser.add_argument("--format", choices=FORMATS, default="csv", help="(csv)")
    parser.add_argument("-c", "--columns", metavar="KEYS", help="these columns: id,optim.lr")
    parser.add_argument("-m", "--metric", metavar="METRIC", action="append", default=[])
    parser.add_argument("--seeds", action="store_true", help="a row per configuration")
    parser.add_argument(
        "--history", metavar="METRIC", nargs="?", const="", help="the points of curves"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path)


def run_export(options: Any, output: Output) -> int:
    """Tables of runs as text."""
    found = chosen(options, output)
    if not len(found):
        output.message("no run is selected; danling ls lists them")
        return 1
    form = "json" if output.json else options.format
    if options.history is not None:
        rows = history_rows(found, [options.history] if options.history else [])
    elif options.seeds:
        if not output.json:
            return _write(seed_table(found, form, options.metric), options.output, output)
        import json

        rows = json.loads(seed_table(found, form, options.metric))
    else:
        names = [name for name in (options.columns or "").split(",") if name]
        rows = found.to_dicts(*names, *options.metric)
    if output.json:
        output.data(rows)
        return 0
    return _write(formatted(rows, form), options.output, output)


def add_report(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    add_choice(parser)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("report.html"))
    parser.add_argument("--title", default="Runs")


def run_report(options: Any, output: Output) -> int:
    """One self-contained HTML file."""
    from danling.experiments.reports.html import report

    found = chosen(options, output)
    if not len(found):
        output.message("no run is selected; danling ls lists them")
        return 1
    text = report(found, options.title)
    if output.json:
        _save(text, options.output)
        output.data({"path": str(options.output), "bytes": len(text.encode()), "runs": len(found)})
        return 0
    _save(text, options.output)
    output.line(str(options.output))
    return 0


def _write(text: str, path: Path | None, output: Output) -> int:
    if path is None:
        output.text(text)
    else:
        _save(text, path)
        output.message(f"written to {path}")
    return 0


def _save(text: str, path: Path) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise RunDirectoryError(
            error.errno,
            f"it cannot be written: {error.strerror}; name another file with -o",
            str(path),
        ) from error
