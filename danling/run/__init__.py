"""A run on the disk: its directory, its record, its lock, and how runs are found.

Begin with `run`. This package may import `files`, `identity`, `config`, `logs` and `errors`.

- `run`: which run this is: its ids, and the directory that it owns while it is open.
- `choice`: which directory a start works in, with `resume` in all its forms.
- `directory`: the names of a run's files, and how a directory is claimed.
- `record`: `run.json`: ids, status, launches, code and environment.
- `lock`: one process at a time works in a run's directory.
- `trial`: the trial of Optuna that a run is.
- `search`: finding runs: those of a project, and the one that a restarted job goes on with.
- `metrics_file`: `metrics.jsonl` and `metrics.csv`: a row per log, cut back on resume.
- `metrics_log`: one of these files, kept in step with a run and its checkpoints.
"""

from __future__ import annotations

from danling.run.directory import RunPaths
from danling.run.record import RunFile

__all__ = ["RunFile", "RunPaths"]
