"""The change of the code between two launches of a run, in numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from danling.identity.code import Code, excluded_folders
from danling.identity.git import GitError, GitTimeoutError, Repository
from danling.identity.worktree import WorkingTree

__all__ = ["describe_change"]


def describe_change(
    then: Mapping[str, Any],
    now: Code,
    start: Path,
    *,
    patch: Path,
    left_out: Sequence[str] = (),
    exclude: Sequence[Path] = (),
    timeout: float = 60.0,
) -> str:
    """Describe what has changed in the code, uncommitted changes included; never fails.

    Args:
        then: The code of the first launch, as it stands in run.json.
        now: The code of this one.
        start: A folder in the working tree, as for `danling.identity.code.read_code`.
        patch: The patch of what was not committed then; it need not exist.
        left_out: The files that this patch does not hold, which makes the numbers approximate.
        exclude: Folders that are output and not code.
        timeout: Seconds after which the lines are not counted.

    Example:
        >>> then = {"source": "files", "extra": ["train.py 9 c0ffee", "model.py 5 decade"]}
        >>> now = Code(extra=("train.py 9 facade", "model.py 5 decade"))
        >>> describe_change(then, now, getfixture("tmp_path"), patch=getfixture("tmp_path") / "p")
        '1 file changed (train.py)'
    """
    files = _changed_files(then.get("extra", ()), now.extra)
    if "git" not in (now.source, then.get("source")):
        return files or "no file is known to have changed"
    phrases = [_commits(then, now)]
    try:
        phrases.append(_lines(then, now, start, patch, left_out, exclude, timeout))
    except (GitError, OSError) as error:
        phrases.append(f"the lines were not counted ({error})")
    if files:
        phrases.append(f"of what is not tracked {files}")
    return "; ".join(phrases)


def _commits(then: Mapping[str, Any], now: Code) -> str:
    phrases = []
    for commit, dirty, when in (
        (then.get("commit"), then.get("dirty"), "then"),
        (now.commit, now.dirty, "now"),
    ):
        changes = " with uncommitted changes" if dirty else ""
        phrases.append(f"{f'commit {commit}' if commit else 'no commit'}{changes} {when}")
    return ", ".join(phrases)


def _lines(
    then: Mapping[str, Any],
    now: Code,
    start: Path,
    patch: Path,
    left_out: Sequence[str],
    exclude: Sequence[Path],
    timeout: float,
) -> str:
    """The short statistics of git between the working tree of then and that of now."""
    start = Path(os.path.realpath(start))
    with WorkingTree.of(Repository(start, timeout)) as tree:
        changed = tree.status(excluded_folders(start, exclude)).changed
        small = [path for path in now.untracked if not tree.is_large(path)]
        after = tree.write_tree([*changed, *small])
        before = tree.head_tree(then.get("commit"))
        exact = not left_out
        if then.get("dirty") or patch.is_file():
            patched = _patched(tree, before, patch)
            exact, before = exact and patched is not None, patched or before
        numbers = tree.run("diff-tree", "-r", "-M", "--shortstat", before, after)
    text = numbers.decode().strip() or "no line changed"
    return text if exact else f"about {text}"


def _patched(tree: WorkingTree, before: str, patch: Path) -> str | None:
    """The tree of a commit with its patch; None where that is gone or does not fit."""
    data = patch.read_bytes() if patch.is_file() else None
    if not data:
        return None if data is None else before  # changes in submodules alone leave it empty
    tree.run("read-tree", before)
    try:
        tree.run("apply", "--cached", "--whitespace=nowarn", "-", stdin=data)
    except GitTimeoutError:
        raise
    except GitError:
        return None
    return tree.write_tree(())


def _changed_files(then: Iterable[str], now: Iterable[str]) -> str:
    """The described files that differ; a line is `path size digest`."""
    changed = {line.rsplit(" ", 2)[0] for line in set(then) ^ set(now)}
    if not changed:
        return ""
    shown = ", ".join(sorted(changed)[:3]) + (", ..." if len(changed) > 3 else "")
    return f"{len(changed)} file{'s' if len(changed) > 1 else ''} changed ({shown})"
