"""Real git repositories for tests, and processes that look at them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = [
    "commit_all",
    "files_of",
    "git",
    "make_repository",
    "read_code_elsewhere",
    "untracked_in",
]

_READ_CODE = """
import dataclasses, json, sys, time
from pathlib import Path
from danling.identity.code import read_code
from danling.identity.ids import experiment_uuid
begin = time.monotonic()
code = read_code(Path(sys.argv[2]), timeout=float(sys.argv[1]))
answer = dataclasses.asdict(code) | {"seconds": time.monotonic() - begin}
print(json.dumps(answer | {"experiment_id": experiment_uuid(code).hex}))
"""


def git(folder: Path, *arguments: str) -> str:
    """Run git as a user would, and return what it prints."""
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder: Path, message: str = "change") -> str:
    """Commit everything in the working tree and return the commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def make_repository(folder: Path) -> Path:
    """A repository with one commit of a script and a module."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "train.py").write_text("lr = 0.1\n")
    (folder / "package").mkdir()
    (folder / "package" / "model.py").write_text("".join(f"layer_{i} = {i}\n" for i in range(40)))
    commit_all(folder, "first")
    return folder


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file below a folder, links included, git's own files excluded."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if ".git" in path.relative_to(folder).parts or (path.is_dir() and not path.is_symlink()):
            continue
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        found[name] = (path.lstat().st_mode & 0o100, content)
    return found


def untracked_in(folder: Path) -> list[str]:
    """The untracked files of a repository that are not ignored."""
    return git(folder, "ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]


def read_code_elsewhere(folder: Path, timeout: float = 60.0, **environment: str) -> dict[str, Any]:
    """What `read_code` finds in a new process, with the seconds it took and the experiment_id."""
    variables = {**os.environ, **environment}
    with TemporaryDirectory() as elsewhere:  # a script, since the text of `python -c` is code
        script = Path(elsewhere) / "read.py"
        script.write_text(_READ_CODE)
        command = [sys.executable, str(script), str(timeout), str(folder)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=variables, timeout=60
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
