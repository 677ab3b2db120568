"""Files that are the old ones or the new ones, never a half.

Begin with `atomic`. It may import `errors` only.

- `atomic`: files written under another name and put in place at once.
- `filesystem`: the primitives that change the disk, one small function each.
- `failpoints`: places where a test can make the process die, fail or wait.
- `json`: plain copies of values, and JSON text that every reader accepts.
"""

from __future__ import annotations

__all__: list[str] = []
