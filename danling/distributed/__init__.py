"""Processes: what those of a run decide together, and models that no process holds alone.

Begin with `world`. It may import `errors` and `transfer`.

- `world`: `World`, what the processes of a run decide together.
- `launch`: the processes that a launcher started, and a group that is joined after a restart.
- `stand_in`: what a process does for a batch that it skips, so that the others do not wait.
- `sharding`: models of which each process holds a part, and forwards that need all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.distributed.world import World

__all__ = ["World"]

__getattr__ = lazy_names(__name__, {"World": "world"})
