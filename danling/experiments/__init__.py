"""Runs on the disk: read, selected, compared and repeated, over plain files.

Begin with `collection`. It may import everything but `testing` and `cli`, and loads torch only in
`repeat.verification`.

- `collection`: many runs: filtered, sorted, compared, summarised over seeds.
- `run`: one run.
- `stored`: what a run has left on the disk, read file by file as it is asked.
- `reading`: the directories of runs, whatever state they are in.
- `columns`: what can be shown, filtered and sorted by, under one name everywhere.
- `expression`: conditions on runs as text, of which nothing is evaluated.
- `selection`: words that select runs.
- `ranking`: which runs are better.
- `seeds`: means and bands over seeds.
- `difference`: what differs between two runs.
- `marks`: tags and notes.
- `removal`: trash and disk space.
- `values`: values as text.
- `repeat`: a run gone on with, repeated, and proved.
- `reports`: tables and pages of runs, for papers and people.
- `sweeps`: many configurations of one script, run and gone on with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.experiments.collection import Runs, runs
    from danling.experiments.run import Run
    from danling.experiments.seeds import SeedGroup, Summary
    from danling.experiments.selection import SelectionError, select, select_one
    from danling.experiments.stored import CheckpointFile, History

__all__ = [
    "CheckpointFile",
    "History",
    "Run",
    "Runs",
    "SeedGroup",
    "SelectionError",
    "Summary",
    "runs",
    "select",
    "select_one",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CheckpointFile": "stored",
        "History": "stored",
        "Run": "run",
        "Runs": "collection",
        "SeedGroup": "seeds",
        "SelectionError": "selection",
        "Summary": "seeds",
        "runs": "collection",
        "select": "selection",
        "select_one": "selection",
    },
)
