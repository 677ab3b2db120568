"""How much the code has changed between two launches of a run, in numbers."""

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
    exclude: Sequence[Path] = (),
    timeout: float = 2.0,
) -> str:
    """What has changed in the code, uncommitted changes included; never fails.

    Args:
        then: The code of the first launch, as it stands in run.json.
        now: The code of this one.
        start: A folder in the working tree, as for `danling.identity.code.read_code`.
        patch: What was not committed then; it need not exist.
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
    parts = [_commits(then, now)]
    try:
        parts.append(_lines(then, now, start, patch, exclude, timeout))
    except (GitError, OSError) as error:
        parts.append(f"the lines were not counted ({error})")
    if files:
        parts.append(f"of what is not in the tree {files}")
    return "; ".join(parts)


def _commits(then: Mapping[str, Any], now: Code) -> str:
    told = []
    for commit, dirty, when in (
        (then.get("commit"), then.get("dirty"), "then"),
        (now.commit, now.dirty, "now"),
    ):
        changes = " with uncommitted changes" if dirty else ""
        told.append(f"{f'commit {commit}' if commit else 'no commit'}{changes} {when}")
    return ", ".join(told)


def _lines(
    then: Mapping[str, Any],
    now: Code,
    start: Path,
    patch: Path,
    exclude: Sequence[Path],
    timeout: float,
) -> str:
    """The short statistics of git between the working tree of then and that of now."""
    start = Path(os.path.realpath(start))
    with WorkingTree.of(Repository(start, timeout)) as tree:
        status = tree.status(excluded_folders(start, exclude))
        paths = [path for path in status.untracked if not tree.is_large(path)]
        after = tree.write_tree([*status.changed, *paths])
        before = tree.head_tree(then.get("commit"))
        if then.get("dirty") and patch.is_file() and (data := patch.read_bytes()):
            before = _patched(tree, before, data)
        numbers = tree.run("diff-tree", "-r", "-M", "--shortstat", before, after)
    text = numbers.decode().strip() or "no line changed"
    exact = before == then.get("tree") and after == now.tree
    return text if exact else f"about {text}"  # a patch holds no secrets and no large files


def _patched(tree: WorkingTree, before: str, data: bytes) -> str:
    """The tree of a commit with its patch; without it where that goes into another repository."""
    tree.run("read-tree", before)
    try:
        tree.run("apply", "--cached", "--whitespace=nowarn", "-", stdin=data)
    except GitTimeoutError:
        raise
    except GitError:
        return before
    return tree.write_tree(())


def _changed_files(then: Iterable[str], now: Iterable[str]) -> str:
    """Which of the described files differ; a line is `path size digest`."""
    changed = {line.rsplit(" ", 2)[0] for line in set(then) ^ set(now)}
    if not changed:
        return ""
    shown = ", ".join(sorted(changed)[:3]) + (", ..." if len(changed) > 3 else "")
    return f"{len(changed)} file{'s' if len(changed) > 1 else ''} changed ({shown})"
