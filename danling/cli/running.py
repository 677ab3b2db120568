"""`resume`, `rerun` and `sweep`: commands, printed or run."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danling.cli.choosing import add_choice, add_run, chosen, chosen_run
from danling.cli.output import Output
from danling.errors import ConfigError, RunDirectoryError
from danling.experiments.reading import VARIABLE, find_root
from danling.experiments.repeat.commands import Command, repeated, resumed
from danling.experiments.sweeps.grid import configurations, drawn, read_axes
from danling.experiments.sweeps.job import Job
from danling.experiments.sweeps.sweep import Sweep
from danling.experiments.values import one_line, value_text

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "resume": "  danling resume @1\n  danling resume @killed --exec",
    "rerun": """\
  danling rerun @best                            print the command
  danling rerun a1b2 --optim.lr 1e-4 --exec      run it, with another key""",
    "sweep": """\
  danling sweep train.py --optim.lr 1e-3,1e-4 --seed 0..4 -j 2
  danling sweep train.py --grid grid.yaml
  danling sweep train.py --optim.lr 1e-5..1e-1:log --random 20
  danling sweep train.py --optim.lr 1e-5..1e-1:log --optimize val/accuracy --trials 50 -j 2
  danling sweep train.py --seed 0..9 --launcher slurm --slurm partition=gpu --slurm time=60""",
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
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="at a time (1)")
    parser.add_argument("--grid", metavar="FILE", help="keys with lists of values, as YAML")
    parser.add_argument("--random", type=int, metavar="N", help="draw N configurations")
    parser.add_argument("--random-seed", type=int, default=0, metavar="SEED", help="of all draws")
    parser.add_argument("--retry-failed", action="store_true", help="also what failed before")
    parser.add_argument("--new-code", action="store_true", help="the code as it is now")
    parser.add_argument("--dry-run", action="store_true", help="list the configurations")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--slurm", metavar="NAME=VALUE", action="append", default=[], help="time=60 (minutes), ..."
    )
    optuna = parser.add_argument_group("with Optuna")
    optuna.add_argument("--optimize", metavar="METRIC", help="look for its best value")
    optuna.add_argument("--trials", type=int, default=20, metavar="N", help="(20)")
    optuna.add_argument(
        "--mode", choices=("min", "max"), help="min for losses and errors, else max"
    )
    optuna.add_argument("--sampler", default="tpe", help="tpe, random, gp, cmaes, ... (tpe)")
    optuna.add_argument("--pruner", default="median", help="median, hyperband, nop, ... (median)")
    optuna.add_argument("--storage", metavar="URL", help="a database; by default a file")


def run_sweep(options: Any, output: Output) -> int:
    """Run many configurations of a script."""
    axes = read_axes(options.flags, options.grid)
    _check_sweep(options)
    if options.optimize:
        return _optimize(axes, options, output)
    rows = drawn(axes, options.random, options.random_seed) if options.random else None
    rows = configurations(axes) if rows is None else rows
    if options.dry_run:
        if output.json:
            output.data(rows)
        else:
            output.table(list(axes), [list(row.values()) for row in rows])
        return 0
    with _swept(Sweep(options.script, rows, _root(options), renew=options.new_code), output) as it:
        tell = _teller(it, len(rows), output)
        if options.launcher == "slurm":
            return _submit(it, tell, options, output)
        counts = it.run(options.jobs or 1, tell, retry=options.retry_failed)
    _print_sweep(it, counts, output)
    return int(any(counts[status] for status in ("failed", "unfinished")))


def _check_sweep(options: Any) -> None:
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"-j {options.jobs}: at least one process is needed")
    if options.optimize and (options.dry_run or options.random or options.launcher == "slurm"):
        raise ConfigError("--optimize chooses one configuration after the other, on this machine")
    if options.trials < 1:
        raise ConfigError(f"--trials {options.trials}: at least one is needed")


def _optimize(axes: dict[str, list[str]], options: Any, output: Output) -> int:
    """Run the configurations that Optuna chooses."""
    from danling.experiments.sweeps.study import Study, direction_of

    direction = direction_of(options.optimize, options.mode)
    study = Study(
        axes,
        options.optimize,
        options.trials,
        direction=direction,
        seed=options.random_seed,
        sampler=options.sampler,
        pruner=options.pruner,
    )
    sweep = Sweep(options.script, [], _root(options), renew=options.new_code, words=study.words)
    with _swept(sweep, output) as it:
        before = study.open(it.folder, options.storage)
        went_on = f"; it goes on after {before} trials" if before else ""
        output.message(f"Optuna {direction}s {options.optimize}{went_on}")
        tell = _teller(it, options.trials, output)
        counts = it.run(options.jobs or 1, tell, source=study)
        best = study.best()
    _print_sweep(it, counts, output, best)
    if best is None:
        output.message(f"no trial has a {options.optimize}: danling ls @failed -c reason")
    return int(best is None or bool(counts["unfinished"]))


@contextmanager
def _swept(sweep: Sweep, output: Output) -> Iterator[Sweep]:
    if sweep.note:
        output.message(sweep.note)
    try:
        yield sweep
    finally:
        sweep.close()


def _teller(sweep: Sweep, total: int, output: Output) -> Callable[[Job], None]:
    """A function that prints a line whenever the status of a configuration has changed."""

    def tell(job: Job) -> None:
        place = f"[{job.number + 1:>{len(str(total))}}/{total}]"
        output.message(f"{place} {one_line(str(job))}  {one_line(sweep.outcome(job))}")

    return tell


def _submit(sweep: Sweep, tell: Callable[[Job], None], options: Any, output: Output) -> int:
    """Leave what is missing to SLURM."""
    from danling.experiments.sweeps.slurm import read_parameters, submit

    parameters = read_parameters(options.slurm)
    waiting = sweep.skip_done(tell, retry=options.retry_failed)
    ids = submit(sweep, waiting, parameters, options.jobs)
    for job in waiting:
        tell(job)
    _print_sweep(sweep, Counter(job.status for job in sweep.jobs), output, slurm=ids)
    if waiting:
        arrays = ", ".join(sorted({each.partition("_")[0] for each in ids.values()}))
        output.message(f"SLURM job {arrays}: squeue --me, danling watch; scancel {arrays} ends it")
    return 0


def _print_sweep(
    sweep: Sweep,
    counts: Counter[str],
    output: Output,
    best: tuple[int, float] | None = None,
    slurm: Mapping[str, str] | None = None,
) -> None:
    if output.json:
        jobs = [
            {"config": job.configuration, "status": job.status}
            | {"id": job.run.id if job.run else None, "score": job.run.score if job.run else None}
            | {"slurm": (slurm or {}).get(str(job.number))}
            for job in sweep.jobs
        ]
        told = {"trial": best[0], "value": best[1]} if best else None
        output.data({"counts": dict(counts), "jobs": jobs, "best": told})
        return
    output.line(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if best is not None:
        output.line(f"best trial {best[0] + 1}: {value_text(best[1])}")


def _root(options: Any) -> Path:
    """The folder of the runs, which a first sweep makes."""
    given = options.root or os.environ.get(VARIABLE)
    if given:
        return Path(given)
    try:
        return find_root()
    except RunDirectoryError:
        return Path("experiments")
