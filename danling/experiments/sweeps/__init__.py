"""Many configurations of one script: which they are, the code they run, and how they are run.

Begin with `sweep`.

- `grid`: the configurations of a sweep, from flags and files.
- `job`: one configuration, and its runs.
- `study`: configurations that Optuna chooses.
- `slurm`: a job array on a cluster.
- `locking`: that each is run by one process.
- `snapshot`: the code as it is when a sweep starts.
- `sweep`: running what is missing, some at a time.
"""

from __future__ import annotations

__all__: list[str] = []
