"""The code as it is when a sweep starts, in a folder that later edits do not reach."""

from __future__ import annotations

import hashlib
import shutil
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from danling.errors import RunError
from danling.experiments.repeat.code import add_worktree, ignore_folder
from danling.identity.git import GitError, Repository
from danling.identity.worktree import Status, WorkingTree

__all__ = ["snapshot"]


_SECONDS = 120.0
_LARGE = 1 << 20  # bytes above which a file outside of git is data, not code
_SKIPPED = ("__pycache__", "node_modules")


_SOURCES = ("*.py", "*.yaml", "*.yml", "*.json", "*.toml")  # untracked data may be large


def snapshot(script: Path, root: Path, folder: Path) -> Path:
    """Copy the code around a script, uncommitted and untracked files included.

    In a git repository it is a worktree; the same code gives the same folder.

    Args:
        script: The script.
        root: The folder of the runs, which is no code.
        folder: The folder in which copies are made.

    Returns:
        The copy of the script.

    Raises:
        RunError: There is no such script, or it cannot be copied.
    """
    script, root = script.resolve(), root.resolve()
    if not script.is_file():
        raise RunError(f"there is no script {str(script)!r}")
    ignore_folder(folder)
    try:
        repository = Repository(script.parent, _SECONDS)
        with WorkingTree.of(repository) as tree:
            status = tree.status([root])
            untracked = _untracked_sources(repository)
            content = tree.capture([repository.root / name for name in untracked], [root])
        if status.commit is None:
            raise GitError("there is no commit yet")
    except GitError:
        return _copied(script, root, folder)
    try:
        extra = sha256("\n".join(content.extra).encode()).hexdigest()
        target = folder / f"sweep-{content.tree[:12]}-{extra[:8]}-{status.commit[:8]}"
        if not target.is_dir():
            _checked_out(repository, status, untracked, target)
        return target / script.relative_to(repository.root)
    except (GitError, OSError) as error:
        raise RunError(f"the code cannot be copied to {folder}: {error}") from error


def _untracked_sources(repository: Repository) -> list[str]:
    """The untracked files that may be code or configuration, relative to the root."""
    listed = repository.run(
        "ls-files", "--others", "--exclude-standard", "-z", "--", *_SOURCES, config={}
    )
    names = listed.decode("utf-8", "surrogateescape").split("\0")
    return [name for name in names if name]


def _checked_out(
    repository: Repository, status: Status, untracked: list[str], target: Path
) -> None:
    """A worktree with the changes of the working tree, whole or not there."""
    draft = target.with_name(f"{target.name}.{uuid4().hex[:8]}")
    add_worktree(repository, draft, str(status.commit))
    for name in (*status.changed, *untracked):
        source, copy = repository.root / name, draft / name
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
        elif not source.exists():
            copy.unlink(missing_ok=True)
    inside = Repository(draft, _SECONDS)
    inside.run("worktree", "move", str(draft.absolute()), str(target.absolute()), config={})


def _copied(script: Path, root: Path, folder: Path) -> Path:
    """A copy of the script's folder, without what is hidden, large, or a run."""
    start = script.parent
    files = [path for path in sorted(start.rglob("*")) if _is_code(path, start, root)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(start).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    target = folder / f"sweep-{digest.hexdigest()[:12]}"
    if not target.is_dir():
        draft = target.with_name(f"{target.name}.{uuid4().hex[:8]}")
        for path in files:
            copy = draft / path.relative_to(start)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        draft.rename(target)
    return target / script.name


def _is_code(path: Path, start: Path, root: Path) -> bool:
    parts = path.relative_to(start).parts
    hidden = any(part.startswith(".") or part in _SKIPPED for part in parts)
    inside = path == root or root in path.parents
    return not hidden and not inside and path.is_file() and path.stat().st_size <= _LARGE
