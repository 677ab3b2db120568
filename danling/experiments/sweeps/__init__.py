"""Many configurations of one script: which they are, the code they run, and how they are run.

Begin with `sweep`.

- `grid`: the configurations of a sweep, from flags and files.
- `snapshot`: the code as it is when a sweep starts.
- `sweep`: running what is missing, some at a time.
"""

from __future__ import annotations

__all__: list[str] = []
