"""`tag`, `note`, `rm`, `restore` and `gc`: what is kept."""

from __future__ import annotations

import argparse
from typing import Any

from danling.cli.choosing import add_choice, add_run, chosen, chosen_run
from danling.cli.output import Output
from danling.experiments.collection import Runs, runs
from danling.experiments.reading import find_root
from danling.experiments.removal import (
    empty_trash,
    in_trash,
    move_to_trash,
    plan_checkpoints,
    protection,
    restore,
)
from danling.experiments.repeat.copies import unused_copies
from danling.experiments.values import duration_text, parse_duration, size_text

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "tag": "  danling tag @best paper\n  danling tag a1b2 --remove paper",
    "note": "  danling note @1 'the loss jumps at epoch 3'",
    "rm": "  danling rm @failed             what would be removed\n  danling rm @failed --yes",
    "restore": "  danling restore                what is in the trash\n  danling restore a1b2",
    "gc": """\
  danling gc                                     what could be freed
  danling gc --checkpoints --keep-best 3 --older-than 30d --yes
  danling gc --code --yes                        copies of code that rerun and sweep have made
  danling gc --trash --yes""",
}


def add_tag(parser: argparse.ArgumentParser) -> None:
    """The options of `tag`."""
    add_run(parser)
    parser.add_argument("tags", nargs="*", metavar="TAG")
    parser.add_argument("--remove", metavar="TAG", action="append", default=[])


def run_tag(options: Any, output: Output) -> int:
    """Add and remove tags."""
    found = runs(options.root).select(options.selection)
    for run in found:
        if options.tags or options.remove:
            run.tag(*options.tags, remove=options.remove)
    if output.json:
        output.data([{"id": run.id, "tags": list(run.tags)} for run in found])
    else:
        for run in found:
            output.line(f"{run.id}  {', '.join(run.tags) or 'no tags'}")
    return 0


def add_note(parser: argparse.ArgumentParser) -> None:
    """The options of `note`."""
    add_run(parser)
    parser.add_argument("text", nargs="?", help="without it the notes are shown")


def run_note(options: Any, output: Output) -> int:
    """Add a remark."""
    run = chosen_run(options, options.selection)
    if options.text:
        run.note(options.text)
    if output.json:
        output.data({"id": run.id, "notes": [note.__dict__ for note in run.notes]})
    else:
        output.table(["time", "note"], [[note.time, note.text] for note in run.notes])
    return 0


def add_rm(parser: argparse.ArgumentParser) -> None:
    """The options of `rm`."""
    add_choice(parser)
    parser.add_argument("--yes", action="store_true", help="do it")


def run_rm(options: Any, output: Output) -> int:
    """Move runs to the trash."""
    if not options.selection and not options.filter:
        output.error("name the runs to remove, such as @failed; danling ls lists them")
        return 2
    everything, root = runs(options.root), find_root(options.root)
    rows: list[dict[str, Any]] = []
    for run in chosen(options, output):
        kept, size = protection(run, everything), run.size
        if kept is None and options.yes:
            move_to_trash(run, root)
        rows.append({"id": run.id, "name": run.name, "bytes": size, "kept": kept})
    removed = [row for row in rows if row["kept"] is None]
    if output.json:
        output.data({"done": options.yes, "runs": rows})
        return 0 if removed else 1
    cells = [[r["id"], r["name"], size_text(r["bytes"]), r["kept"] or ""] for r in rows]
    output.table(["run", "name", "size", "kept, because"], cells)
    total = size_text(sum(row["bytes"] for row in removed))
    if options.yes:
        output.message(
            f"{len(removed)} runs, {total}, are in the trash: danling restore, danling gc"
        )
    else:
        output.message(f"{len(removed)} runs, {total}, would go to the trash: add --yes")
    return 0 if removed else 1


def add_restore(parser: argparse.ArgumentParser) -> None:
    """The options of `restore`."""
    parser.add_argument("selection", nargs="*", metavar="RUN")


def run_restore(options: Any, output: Output) -> int:
    """Bring runs back from the trash; without any, list what is in it."""
    root = find_root(options.root)
    trash = in_trash(root)
    found = trash.select(*options.selection) if options.selection else trash
    if options.selection:
        for run in found:
            restore(run, root)
    if output.json:
        output.data([{"id": run.id, "name": run.name} for run in found])
    else:
        output.table(["run", "name"], [[run.id, run.name] for run in found])
    return 0 if len(found) else 1


def add_gc(parser: argparse.ArgumentParser) -> None:
    """The options of `gc`."""
    add_choice(parser)
    parser.add_argument("--checkpoints", action="store_true", help="checkpoints nobody needs")
    parser.add_argument("--code", action="store_true", help="copies of code nobody needs")
    parser.add_argument("--trash", action="store_true", help="runs in the trash, for good")
    parser.add_argument("--keep-best", type=int, default=3, metavar="N", help="runs (3)")
    parser.add_argument("--older-than", default="0s", metavar="AGE", help="30d")
    parser.add_argument("--yes", action="store_true", help="do it")


def run_gc(options: Any, output: Output) -> int:
    """Free disk space."""
    everything = not (options.checkpoints or options.code or options.trash)
    rows = []
    if options.checkpoints or everything:
        rows += _checkpoints(options, output)
    if options.code or everything:
        rows += _code(options)
    if options.trash or everything:
        rows += _trash(options)
    total = sum(row["bytes"] for row in rows)
    if output.json:
        output.data({"done": options.yes, "bytes": total, "removed": rows})
        return 0
    cells = [[r["id"], size_text(r["bytes"]), ", ".join(r["what"])] for r in rows]
    output.table(["run", "size", "removed" if options.yes else "would be removed"], cells)
    done = "were freed" if options.yes else "would be freed: add --yes"
    output.message(f"{size_text(total)} {done}")
    return 0


def _checkpoints(options: Any, output: Output) -> list[dict[str, Any]]:
    everything = runs(options.root)
    plans = plan_checkpoints(
        list(chosen(options, output)),
        everything,
        keep_best=options.keep_best,
        older_than=parse_duration(options.older_than),
    )
    rows = []
    for plan in plans:
        size = plan.carry_out() if options.yes else plan.size
        names = [path.name for path in (*plan.files, *plan.folders)]
        rows.append({"id": plan.run.id, "bytes": size, "what": names})
    return rows


def _code(options: Any) -> list[dict[str, Any]]:
    root = find_root(options.root)
    copies = unused_copies(root, runs(root))
    for copy in copies:
        if options.yes:
            copy.remove()
    return [
        {"id": copy.path.name, "bytes": copy.size, "what": ["a copy of code"]} for copy in copies
    ]


def _trash(options: Any) -> list[dict[str, Any]]:
    oldest = parse_duration(options.older_than)
    found = [run for run in in_trash(find_root(options.root)) if (run.age or 0.0) >= oldest]
    rows = [
        {"id": run.id, "bytes": run.size, "what": [f"the run, {duration_text(run.age)} old"]}
        for run in found
    ]
    if options.yes:
        empty_trash(Runs(found))
    return rows
