"""Identity: which code, which configuration, which run, and where it ran.

Begin with `ids`. This package may import `files` and `errors`.

- `ids`: the ids of an experiment and of a run, made of code and configuration.
- `code`: the code that runs: its commit, its changes, and what could not be read.
- `modules`: the files that this process has imported from its project, and code that is in no file.
- `git`: questions to git, with a time limit.
- `worktree`: the exact content of a git working tree.
- `patch`: the uncommitted code of a run as a patch, without its secrets.
- `code_change`: how much the code has changed between two launches.
- `environment`: the machine and the packages of a run, without secrets.
- `redaction`: secrets taken out of text.
"""

from __future__ import annotations

from danling.identity.code import Code, read_code
from danling.identity.ids import experiment_uuid, run_uuid

__all__ = ["Code", "experiment_uuid", "read_code", "run_uuid"]
