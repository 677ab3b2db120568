"""Identity: which code, which configuration, which run, and where it ran.

Begin with `ids`. It may import `files` and `errors`.

- `ids`: the ids of an experiment and of a run, made of code and configuration.
- `code`: the code that runs: commit, changes, and what could not be read.
- `git`: questions to git, with a time limit.
- `worktree`: the exact content of a git working tree.
- `patch`: the uncommitted code of a run as a patch, without its secrets.
- `code_change`: how much the code changed between two launches.
- `environment`: the machine and the packages of a run, without secrets.
- `redaction`: how secrets are taken out of text.
"""

from __future__ import annotations

__all__: list[str] = []
