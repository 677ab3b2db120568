"""The `danling` command: what `danling.experiments` knows, on the terminal.

Begin with `main`. It may import everything but `testing`, and loads a verb when it is asked for.

- `main`: the verbs, and what they have in common: where to look, exit codes, errors.
- `output`: tables, colours and JSON on stdout, messages on stderr.
- `choosing`: the options that say which runs, and the runs that they mean.
- `listing`: `ls`, `best`, `seeds`.
- `showing`: `show`, `diff`.
- `curves`: `plot`.
- `following`: `logs`, `watch`.
- `exporting`: `export`, `report`.
- `keeping`: `tag`, `note`, `rm`, `restore`, `gc`.
- `running`: `resume`, `rerun`, `sweep`.
- `checking`: `verify`, `doctor`.
- `serving`: `tensorboard`.
- `completing`: `completion`, and the words of a shell.
"""

from __future__ import annotations

__all__: list[str] = []
