"""`ls`, `best` and `seeds`: tables of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from danling.cli.choosing import add_choice, add_metric, chosen
from danling.cli.output import Output
from danling.errors import CheckpointError
from danling.experiments.collection import Runs
from danling.experiments.columns import column, differing_settings
from danling.experiments.reports.tables import seed_rows
from danling.experiments.run import Run
from danling.experiments.seeds import Summary
from danling.experiments.stored import FAILED
from danling.experiments.values import duration_text, value_text

__all__ = ["EXAMPLES", "list_runs"]


EXAMPLES = {
    "ls": """\
  danling ls                                     all runs, the newest first
  danling ls -F 'val.accuracy > .9' -s -val.accuracy -n 5
  danling ls @failed -c reason
  danling ls --keys                              what can be shown and filtered by""",
    "best": """\
  danling best                                   the best run
  danling best -n 5 -m val.loss
  python evaluate.py $(danling best --path)      the file of its checkpoint""",
    "seeds": """\
  danling seeds
  danling seeds -m val.accuracy -m val.loss""",
}


def add_ls(parser: argparse.ArgumentParser) -> None:
    """The options of `ls`."""
    add_choice(parser)
    parser.add_argument("-c", "--columns", metavar="KEYS", help="further columns: optim.lr,reason")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids alone")
    parser.add_argument("--keys", action="store_true", help="list the columns that there are")
    parser.add_argument("--seeds", action="store_true", help="as `danling seeds`")
    parser.add_argument("--passed-over", action="store_true", help="list what is no run, and why")


def run_ls(options: Any, output: Output) -> int:
    """List runs."""
    found = chosen(options, output)
    if options.seeds:
        return _print_seeds(found, [], output)
    if options.passed_over:
        return _print_passed_over(found, output)
    if options.keys:
        return _print_keys(found, output)
    extra = [name for name in (options.columns or "").split(",") if name]
    if output.json:
        names = ["id", "name", "path", "status", "reason", "created", "time", "score", "commit"]
        names += ["dirty", "seed", "tags", *extra]
        rows = [
            {**row, "monitor": run.monitor, "best": run.best, "config": run.settings}
            for row, run in zip(found.to_dicts(*names), found, strict=True)
        ]
        over = [{"path": str(o.path), "reason": o.reason} for o in found.passed_over]
        output.data({"runs": rows, "passed_over": over})
    elif options.quiet:
        for run in found:
            output.line(run.id)
    else:
        list_runs(found, output, extra)
    return 0 if len(found) else _nothing(output)


def list_runs(found: Runs, output: Output, extra: Sequence[str] = ()) -> None:
    """Print a table of runs: what differs, and how they stand."""
    if not len(found):
        return
    names = differing_settings(list(found))
    scores = list(dict.fromkeys(run.monitor for run in found if run.best is not None))
    further = {name: column(found, name) for name in extra}
    head = ["run", "name", "status", "age", *names, *scores, "at", "time", "code", "tags"]
    rows = []
    for run in found:
        values = [value_text(run.settings.get(name)) for name in names]
        if "seed" in names:
            values[names.index("seed")] = value_text(run.seed)
        best = [value_text(run.metric(name)) if run.monitor == name else "" for name in scores]
        rows.append(
            [
                run.id,
                run.name,
                run.status,
                duration_text(run.age),
                *values,
                *best,
                _epoch(run),
                duration_text(run.duration),
                code_text(run),
                ",".join(run.tags),
                *(value_text(value_of(run)) for value_of in further.values()),
            ]
        )
    output.table([*head, *further], rows)
    _footer(found, output)


def code_text(run: Run) -> str:
    """The commit of a run, with a star for uncommitted code."""
    return f"{(run.commit or run.experiment_id)[:8]}{'*' if run.dirty else ''}"


def _epoch(run: Run) -> str:
    epoch = (run.best or {}).get("epoch")
    return f"epoch {epoch}" if epoch is not None else ""


def _footer(found: Runs, output: Output) -> None:
    failed = [run for run in found if run.status in FAILED]
    parts = [f"{len(found)} runs" if len(found) != 1 else "1 run"]
    if any(run.dirty for run in found):
        parts.append("* uncommitted code, saved with the run")
    for run in [run for run in failed if run.reason][:1]:
        from danling.experiments.values import one_line

        parts.append(f"{run.id[-8:]}: {one_line(run.reason or '')}")
    output.message("; ".join(parts))


def _nothing(output: Output) -> int:
    output.message("no run is selected; danling ls lists all, danling ls --keys what to filter by")
    return 1


def _print_passed_over(found: Runs, output: Output) -> int:
    if output.json:
        output.data([{"path": str(o.path), "reason": o.reason} for o in found.passed_over])
    else:
        output.table(["entry", "reason"], [[o.path.name, o.reason] for o in found.passed_over])
    return 0 if found.passed_over else 1


def _print_keys(found: Runs, output: Output) -> int:
    if output.json:
        output.data(found.columns())
    else:
        for name in found.columns():
            output.line(value_text(name))
    return 0


def add_best(parser: argparse.ArgumentParser) -> None:
    """The options of `best`."""
    add_choice(parser)
    add_metric(parser)
    parser.add_argument("--path", action="store_true", help="the file of its best checkpoint")


def run_best(options: Any, output: Output) -> int:
    """The best runs."""
    limit, options.limit = options.limit, None
    ranked = chosen(options, output).ranked(options.metric, options.mode)[: limit or 1]
    if not len(ranked):
        output.message("no run has a score yet: danling ls shows how they stand")
        return 1
    if options.path:
        for run in ranked:
            output.line(str(run.checkpoint("best")))
        return 0
    if output.json:
        name = ranked.score_of(options.metric, options.mode)[0]
        rows = [
            {"id": r.id, "name": r.name, "metric": name, "value": column(ranked, name)(r)}
            | {"epoch": (r.best or {}).get("epoch"), "checkpoint": _checkpoint(r)}
            for r in ranked
        ]
        output.data(rows)
    else:
        list_runs(ranked, output, [options.metric] if options.metric else [])
    return 0


def _checkpoint(run: Run) -> str | None:
    try:
        return str(run.checkpoint("best"))
    except CheckpointError:
        return None


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """The options of `seeds`."""
    add_choice(parser)
    parser.add_argument("-m", "--metric", metavar="METRIC", action="append", default=[])


def run_seeds(options: Any, output: Output) -> int:
    """Means over seeds."""
    return _print_seeds(chosen(options, output), options.metric, output)


def _print_seeds(found: Runs, metrics: Sequence[str], output: Output) -> int:
    if not len(found):
        return _nothing(output)
    rows = seed_rows(found, metrics)
    if output.json:
        output.data([{name: _plain(value) for name, value in row.items()} for row in rows])
        return 0
    names = [name for name in rows[0] if name not in ("n", "others")]
    cells = [
        [*(_cell(row[name]) for name in names), str(row["n"]), _others(row["others"])]
        for row in rows
    ]
    output.table([*names, "seeds", "not counted"], cells)
    return 0


def _plain(value: Any) -> Any:
    return value.__dict__ if isinstance(value, Summary) else value


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, Summary) else value_text(value)


def _others(count: int) -> str:
    return str(count) if count else ""
