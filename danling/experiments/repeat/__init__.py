"""A run gone on with, repeated, and proved to be what it says.

Begin with `commands`.

- `commands`: the command lines that go on with a run or repeat it.
- `code`: the code of a run, found again and rebuilt.
- `copies`: copies of code that nothing needs any more.
- `verification`: whether a run is what it says.
"""

from __future__ import annotations

__all__: list[str] = []
