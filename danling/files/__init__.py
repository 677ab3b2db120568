"""Files on the disk: written whole or not at all, and read with bounds.

Begin with `atomic`. This package may import `errors` only.

- `atomic`: files that are written under another name and put in place in one step.
- `durable`: `fsync` and hard links, left out with a warning where a file system lacks them.
- `filesystem`: the primitives that read and change the disk, one small function each.
- `failpoints`: places where a test can make the process die, fail or wait.
- `json`: plain copies of values, and JSON text that every reader accepts.
"""

from __future__ import annotations

__all__: list[str] = []
