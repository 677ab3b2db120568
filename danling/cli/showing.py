"""`show` and `diff`: one run, and two."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from danling.cli.choosing import add_run, chosen_run
from danling.cli.listing import code_text
from danling.cli.output import Output
from danling.errors import RunDirectoryError
from danling.experiments.difference import Difference
from danling.experiments.repeat.commands import resumed
from danling.experiments.run import Run
from danling.experiments.values import duration_text, one_line, size_text, value_text
from danling.files.json import dotted

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "show": """\
  danling show @1
  danling show a1b2 --config
  danling show @best --patch | git apply""",
    "diff": """\
  danling diff @1 @best
  danling diff a1b2 c3d4 --patch                 the code too
  danling diff a1b2 c3d4 --exit-code             1 if configuration or code differ""",
}


def add_show(parser: argparse.ArgumentParser) -> None:
    """The options of `show`."""
    add_run(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--config", action="store_true", help="the configuration alone")
    part.add_argument("--env", action="store_true", help="the environment alone")
    part.add_argument("--patch", action="store_true", help="the uncommitted code alone")
    part.add_argument("--path", action="store_true", help="the directory alone")


def run_show(options: Any, output: Output) -> int:
    """Everything about a run."""
    run = chosen_run(options, options.selection)
    if output.json:
        output.data(_all(run))
    elif options.path:
        output.line(str(run.path))
    elif options.patch:
        output.text(run.patch)
    elif options.config:
        _print(output, run.all_settings)
    elif options.env:
        _print(output, dotted(run.environment))
    else:
        _overview(run, output)
    return 0


def _all(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "path": str(run.path),
        "status": run.status,
        "reason": run.reason,
        "time": run.duration,
        "size": run.size,
        "tags": list(run.tags),
        "notes": [{"time": note.time, "text": note.text} for note in run.notes],
        "config": run.all_settings,
        "best": run.best,
        "latest": run.latest,
        "code": dict(run.code),
        "environment": dict(run.environment),
        "launches": [dict(launch) for launch in run.launches],
        "checkpoints": [
            {
                "name": file.name,
                "epoch": file.epoch,
                "global_step": file.global_step,
                "size": file.size,
                "sha256": file.sha256,
            }
            for file in run.checkpoints
        ],
    }


def _overview(run: Run, output: Output) -> None:
    reason = f": {one_line(run.reason)}" if run.reason else ""
    output.line(f"{output.paint(run.id, 'title')}  {one_line(run.name)}")
    facts = {
        "status": output.paint(one_line(run.status), run.status) + reason,
        "created": f"{one_line(str(run.record.get('created')))} ({duration_text(run.age)} ago)",
        "time": duration_text(run.duration),
        "score": _score(run),
        "code": code_text(run),
        "host": value_text(run.environment.get("host")),
        "launches": str(len(run.launches)),
        "tags": ", ".join(run.tags),
        "size": size_text(run.size),
        "path": one_line(str(run.path)),
    }
    _print(output, {key: value for key, value in facts.items() if value}, raw=True)
    for note in run.notes:
        output.line(f"note         {one_line(note.time)}  {one_line(note.text)}")
    output.line("\nconfig")
    _print(output, run.all_settings, indent="  ")
    if len(run.launches) > 1:
        output.line()
        head = ["launch", "host", "slurm", "steps", "ended"]
        output.table(head, [_launch(number, each) for number, each in enumerate(run.launches, 1)])
    files = [
        [f.name, f"epoch {f.epoch}", str(f.global_step), size_text(f.size)] for f in run.checkpoints
    ]
    if files:
        output.line()
        output.table(["checkpoint", "at", "step", "size"], files)
    try:
        output.line(f"\nresume       {one_line(str(resumed(run)))}")
    except RunDirectoryError as error:
        output.line(f"\nresume       {one_line(str(error))}")


def _launch(number: int, launch: Mapping[str, Any]) -> list[str]:
    """A launch in a row: where it worked, on which steps, and why it ended."""
    slurm = launch.get("slurm")
    job = slurm if isinstance(slurm, Mapping) else {}
    array = [job.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK")]
    name = "_".join(map(str, array)) if all(array) else str(job.get("SLURM_JOB_ID") or "")
    restart = job.get("SLURM_RESTART_COUNT")
    steps = [value_text(launch.get(key)) for key in ("start_step", "end_step")]
    return [
        str(number),
        value_text(launch.get("host")),
        f"{name} restart {restart}" if restart else name,
        " to ".join(filter(None, steps)),
        value_text(launch.get("exit_reason")) or "running",
    ]


def _score(run: Run) -> str:
    if run.score is None:
        return ""
    return f"{run.monitor} {value_text(run.score)} at epoch {(run.best or {}).get('epoch')}"


def _print(output: Output, values: dict[str, Any], *, raw: bool = False, indent: str = "") -> None:
    for key, value in values.items():
        text = value if raw else value_text(value) or "null"
        output.line(f"{indent}{one_line(key):<12} {text}")


def add_diff(parser: argparse.ArgumentParser) -> None:
    """The options of `diff`."""
    add_run(parser, "first")
    add_run(parser, "second")
    parser.add_argument("--patch", action="store_true", help="show the change of the code")
    parser.add_argument("--exit-code", action="store_true", help="1 if config or code differ")


def run_diff(options: Any, output: Output) -> int:
    """Print the differences between two runs."""
    first, second = chosen_run(options, options.first), chosen_run(options, options.second)
    difference = first.diff(second)
    if output.json:
        patch = {"patch": difference.code.patch} if options.patch else {}
        output.data(difference.to_dict() | patch)
    else:
        _print_difference(difference, output)
        if options.patch:
            output.line("\n".join(map(one_line, difference.code.patch.splitlines())))
    return int(options.exit_code and not difference.is_empty)


def _print_difference(difference: Difference, output: Output) -> None:
    for title, text in difference.lines():
        output.line(f"{output.paint(f'{title:<12}', 'title')} {one_line(text)}")
