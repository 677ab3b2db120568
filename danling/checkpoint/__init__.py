"""Checkpoints: files that are whole or not there, and that a run goes on from exactly.

Begin with `store`: what a directory of checkpoints can do. This package knows no runner; it may
import `files`, `seed`, `distributed`, `data` and `errors`.

- `store`: `CheckpointStore`, the checkpoints of one run: commit, load, and what is kept.
- `commit`: how values in memory become names that survive a crash.
- `catalog`: which checkpoints there are, read from the files themselves.
- `trailer`: the end of a checkpoint file, by which it is recognised and checked.
- `digest`: the SHA-256 of what is written, computed while it is written.
- `archive`: what a file must be before torch may read it.
- `encoding`: what a checkpoint may hold, and how other types are written with it.
- `reading`: a checkpoint file is read, by one process or by all, if it is whole and safe.
- `saving`: one save, from the state of a runner to the file.
- `background`: saves on a thread of their own, one at a time, from copies.
- `retention`: which of the numbered files stay.
- `exporting`: what other programs take of a run: weights, and the model with them.
- `sharded`: checkpoints of which each process writes and reads a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.checkpoint.reading import read_checkpoint
    from danling.checkpoint.store import CheckpointStore

__all__ = ["CheckpointStore", "read_checkpoint"]

__getattr__ = lazy_names(__name__, {"CheckpointStore": "store", "read_checkpoint": "reading"})
