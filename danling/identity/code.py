"""The code that runs: what of it is committed, what has changed, and what could not be read."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from danling.identity.git import GitError, GitTimeoutError, Repository
from danling.identity.worktree import Snapshot, WorkingTree, file_digest

if TYPE_CHECKING:
    pass

__all__ = ["Code", "excluded_folders", "read_code"]


@dataclass(frozen=True)
class Code:
    """The code that runs, as far as it could be found out."""

    commit: str | None = None
    """Git commit; None outside a repository and before the first commit."""
    branch: str | None = None
    tree: str | None = None
    """Git tree of the working tree; without git a digest of the source files."""
    dirty: bool | None = None
    """Whether the working tree differs from the commit; None where that is unknown."""
    partial: bool = False
    """Not everything could be read in time: the ids may be those of other code too."""
    source: str = "files"
    """"git", or "files": the main script and the modules it had imported from its project."""
    extra: tuple[str, ...] = ()
    """What the tree does not hold: `path size digest` of large untracked files and of source files
    outside git, `path commit tree` of changed submodules and nested repositories."""
    note: str | None = None
    """Why git was not used, or not to the end."""


def read_code(start: Path, *, exclude: Sequence[Path] = (), timeout: float = 2.0) -> Code:
    """Find out which code runs; never fails, and never takes much longer than `timeout`.

    Args:
        start: Folder of the main script, or the current folder where there is none.
        exclude: Folders that are output and not code. One that holds `start` is not excluded.
        timeout: Seconds after which the result is marked partial.

    Example:
        >>> code = read_code(getfixture("tmp_path"))
        >>> code.source, code.commit, code.partial
        ('files', None, False)
    """
    start = Path(os.path.realpath(start))
    outside = excluded_folders(start, exclude)
    deadline = time.monotonic() + timeout
    repository: Repository | None = None
    try:
        repository = Repository(start, timeout)
        with WorkingTree.of(repository) as tree:
            return _code(tree.snapshot(outside))
    except GitTimeoutError as error:
        commit = repository.head() if repository else None
        return Code(commit=commit, partial=True, source="git", note=str(error))
    except (GitError, OSError) as error:
        commit = repository.head() if repository else None
        return _source_files(start, commit, str(error), deadline)


def _code(snapshot: Snapshot) -> Code:
    return Code(
        commit=snapshot.commit,
        branch=snapshot.branch,
        tree=snapshot.tree,
        dirty=snapshot.dirty,
        source="git",
        extra=snapshot.extra,
    )


def excluded_folders(start: Path, exclude: Sequence[Path]) -> list[Path]:
    """The folders of `exclude` that do not hold `start`; of links, their targets too."""
    named = [Path(os.path.realpath(path.parent)) / path.name for path in map(Path, exclude)]
    resolved = [Path(os.path.realpath(path)) for path in exclude]
    return [path for path in [*named, *resolved] if path != start and path not in start.parents]


def _source_files(start: Path, commit: str | None, note: str, deadline: float) -> Code:
    root = start
    while (root / "__init__.py").is_file():  # `python -m package.train` imports from above
        root = root.parent
    lines: list[str] = []
    partial = False
    for path in sorted(set(_project_files(root))):
        try:
            digest = file_digest(path, deadline)
            lines.append(f"{path.relative_to(root).as_posix()} {path.stat().st_size} {digest}")
        except GitTimeoutError as error:
            partial, note = True, f"{note}; {error}"
            break
        except OSError:  # a module of a zip file, a script deleted since
            continue
    tree = sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return Code(commit=commit, tree=tree, partial=partial, extra=tuple(lines), note=note)


def _project_files(root: Path) -> Iterator[Path]:
    """Files of the modules imported so far that lie under `root` and belong to no library."""
    libraries = [Path(os.path.realpath(path)) for path in (sys.prefix, sys.base_prefix)]
    libraries = [path for path in libraries if root in path.parents]
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")  # getattr would wake lazy modules
        path = Path(os.path.realpath(file)) if isinstance(file, str) else root
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if root in path.parents and not installed and not set(libraries) & set(path.parents):
            yield path


def main_folder() -> Path:
    """Where the main script is; the current folder in a notebook."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()
