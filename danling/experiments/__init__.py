"""Runs on the disk: read, selected, compared and repeated, over plain files.

Begin with `collection`. It may import everything but `testing` and `cli`, and loads torch only in
`verification`.

- `collection`: many runs: filtered, sorted, compared, summarised over seeds.
- `run`: one run, read file by file as it is asked.
- `reading`: the directories of runs, whatever state they are in.
- `columns`: what can be shown, filtered and sorted by, under one name everywhere.
- `expression`: conditions on runs as text, of which nothing is evaluated.
- `selection`: words that select runs.
- `seeds`: means and bands over seeds.
- `difference`: what differs between two runs.
- `commands`: the command lines that go on with a run or repeat it.
- `code`: the code of a run, found again and rebuilt.
- `marks`: tags and notes.
- `removal`: trash and disk space.
- `verification`: whether a run is what it says.
- `values`: values as text.
- `reports`: tables and pages of runs, for papers and people.
- `sweeps`: many configurations of one script, run and gone on with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.experiments.collection import Runs, runs
    from danling.experiments.run import CheckpointFile, History, Run
    from danling.experiments.seeds import SeedGroup, Summary
    from danling.experiments.selection import SelectionError, select, select_one

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
        "CheckpointFile": "run",
        "History": "run",
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
