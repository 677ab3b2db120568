"""`resume`, `rerun` and `sweep`: commands, printed or run."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from danling.cli.choosing import add_choice, add_run, chosen, chosen_run
from danling.cli.output import Output
from danling.errors import ConfigError, RunDirectoryError
from danling.experiments.commands import Command, repeated, resumed
from danling.experiments.reading import VARIABLE, find_root
from danling.experiments.values import one_line

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "resume": "  danling resume @1\n  danling resume @killed --exec",
    "rerun": """\
  danling rerun @best                            print the command
  danling rerun a1b2 --optim.lr 1e-4 --exec      run it, with another key""",
    "sweep": """\
  danling sweep train.py --optim.lr 1e-3,1e-4 --seed 0..4 -j 2
  danling sweep train.py --grid grid.yaml
  danling sweep train.py --optim.lr 1e-5..1e-1:log --random 20""",
}


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The options of `resume`."""
    add_choice(parser, required=True)
    parser.add_argument("--current-code", action="store_true", help="the code as it is now")
    parser.add_argument("--exec", action="store_true", dest="execute", help="run it")


def run_resume(options: Any, output: Output) -> int:
    """The commands that go on with runs."""
    commands = []
    for run in chosen(options, output):
        if run.is_running:
            raise RunDirectoryError(f"{run.id} is running: danling logs {run.id} -f follows it")
        root = None if options.current_code else find_root(options.root)
        commands.append(resumed(run, root=root))
    return _print_or_run(commands, options, output)


def add_rerun(parser: argparse.ArgumentParser) -> None:
    """The options of `rerun`."""
    add_run(parser)
    parser.add_argument("--exec", action="store_true", dest="execute", help="run it")


def run_rerun(options: Any, output: Output) -> int:
    """The command that runs a run's exact code again, which is rebuilt in a git worktree."""
    run = chosen_run(options, options.selection)
    command, _ = repeated(run, find_root(options.root), options.flags)
    return _print_or_run([command], options, output)


def _print_or_run(commands: list[Command], options: Any, output: Output) -> int:
    for command in commands:
        for note in command.notes:
            output.message(one_line(note))
    if output.json:
        output.data(
            [
                {"argv": c.argv, "cwd": str(c.cwd) if c.cwd else None, "notes": list(c.notes)}
                | {"environment": dict(c.environment)}
                for c in commands
            ]
        )
    else:
        for command in commands:
            output.line(one_line(str(command)))
    if not options.execute:
        return 0
    output.flush()
    codes = [
        subprocess.run(c.argv, cwd=c.cwd, env={**os.environ, **c.environment}).returncode
        for c in commands
    ]
    return int(any(codes))


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """The options of `sweep`."""
    parser.add_argument("script", type=Path, help="then flags with several values")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="at a time (1)")
    parser.add_argument("--grid", metavar="FILE", help="keys with lists of values, as YAML")
    parser.add_argument("--random", type=int, metavar="N", help="draw N configurations")
    parser.add_argument("--random-seed", type=int, default=0, metavar="SEED", help="of --random")
    parser.add_argument("--retry-failed", action="store_true", help="also what failed before")
    parser.add_argument("--new-code", action="store_true", help="the code as it is now")
    parser.add_argument("--dry-run", action="store_true", help="list the configurations")


def run_sweep(options: Any, output: Output) -> int:
    """Run many configurations of a script."""
    from danling.experiments.sweeps.grid import configurations, drawn, read_axes
    from danling.experiments.sweeps.sweep import Job, Sweep

    axes = read_axes(options.flags, options.grid)
    if options.jobs < 1:
        raise ConfigError(f"-j {options.jobs}: at least one process is needed")
    rows = drawn(axes, options.random, options.random_seed) if options.random else None
    rows = configurations(axes) if rows is None else rows
    if options.dry_run:
        if output.json:
            output.data(rows)
        else:
            output.table(list(axes), [list(row.values()) for row in rows])
        return 0
    sweep = Sweep(options.script, rows, _root(options), renew=options.new_code)
    if sweep.note:
        output.message(sweep.note)

    def tell(job: Job) -> None:
        place = f"[{job.number + 1:>{len(str(len(rows)))}}/{len(rows)}]"
        output.message(f"{place} {one_line(str(job))}  {one_line(sweep.outcome(job))}")

    try:
        counts = sweep.run(options.jobs, tell, retry=options.retry_failed)
    finally:
        sweep.close()
    _print_sweep(sweep, dict(counts), output)
    return int(any(counts[status] for status in ("failed", "unfinished")))


def _print_sweep(sweep: Any, counts: dict[str, int], output: Output) -> None:
    if output.json:
        jobs = [
            {"config": job.configuration, "status": job.status}
            | {"id": job.run.id if job.run else None, "score": job.run.score if job.run else None}
            for job in sweep.jobs
        ]
        output.data({"counts": counts, "jobs": jobs})
        return
    output.line(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))


def _root(options: Any) -> Path:
    """The folder of the runs, which a first sweep makes."""
    given = options.root or os.environ.get(VARIABLE)
    if given:
        return Path(given)
    try:
        return find_root()
    except RunDirectoryError:
        return Path("experiments")
