"""The code of a run: where it still is, and how it is put back into a git worktree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from danling.errors import RunError
from danling.experiments.stored import StoredRun
from danling.identity.git import GitError, Repository
from danling.identity.worktree import WorkingTree

__all__ = [
    "CODE_FOLDER",
    "Rebuilt",
    "add_worktree",
    "code_problem",
    "find_repository",
    "has_changed",
    "ignore_folder",
    "rebuild",
    "recorded_tree",
    "script_in",
]


CODE_FOLDER = ".danling/code"
"""The folder of worktrees, below the folder of the runs."""

_SECONDS = 120.0  # for git: a checkout of a large project takes its time
_CONFIG = {"core.hooksPath": os.devnull, "protocol.allow": "never"}


@dataclass(frozen=True)
class Rebuilt:
    """The code of a run in a folder of its own."""

    path: Path
    exact: bool
    """Whether it is byte for byte the recorded one."""
    notes: tuple[str, ...] = ()
    """The files that could not be brought back."""


def find_repository(run: StoredRun, start: Path | None = None) -> Repository:
    """A git repository that has the commit of a run.

    It is looked for around `start` or the current folder, where the run was started, and around
    the run.

    Raises:
        RunError: The run has no commit, or no repository has it.
    """
    if run.code.get("source") != "git" or run.commit is None:
        raise RunError(
            f"{run.id} was started outside of git: only digests of its source files are recorded"
        )
    started = [Path(str(launch.get("cwd"))) for launch in run.launches[:1]]
    places = [start or Path.cwd(), *started, run.path]
    for place in places:
        if os.path.isdir(place):  # of Path it may fail for want of rights
            with suppress(GitError):
                repository = Repository(place, _SECONDS)
                git(repository, "cat-file", "-e", f"{run.commit}^{{commit}}")
                return repository
    raise RunError(
        f"no repository here has the commit {run.commit[:12]} of {run.id}: "
        "run this inside a clone of the project, after git fetch"
    )


def git(repository: Repository, *arguments: str, stdin: bytes = b"", **variables: str) -> str:
    """Return the output of git, without its hooks."""
    extra: dict[str, Any] = dict(variables)
    output = repository.run(*arguments, stdin=stdin, config=_CONFIG, **extra)
    return output.decode("utf-8", "replace")


def recorded_tree(tree: WorkingTree, run: StoredRun) -> str:
    """The id of the git tree of a run's code, built in the temporary objects of `tree`.

    Raises:
        GitError: The patch of the run cannot be applied.
    """
    tree.run("read-tree", str(run.commit))
    patch = _patch_bytes(run)
    if run.dirty and patch:
        tree.run("apply", "--cached", "--whitespace=nowarn", "-", stdin=patch)
    return tree.write_tree(())


def code_problem(tree: WorkingTree, run: StoredRun) -> str | None:
    """Why commit and patch of a run do not give its code; None where they do.

    Raises:
        GitError: The patch of the run cannot be applied.
    """
    recorded_tree(tree, run)  # its index is looked at now
    for line in _untracked_lines(run):
        name = line.rsplit(" ", 2)[0]
        content = tree.run("cat-file", "blob", f":{name}", accept=(0, 128))  # 128: there is none
        if f"{name} {len(content)} {sha256(content).hexdigest()}" != line:
            return f"metadata/code.patch does not give the recorded {name}"
    untracked = "".join(f"{name}\0" for name in _untracked(run))
    if untracked:  # they are in the patch, and no part of the recorded tree
        names = os.fsencode(untracked)
        tree.run("update-index", "--force-remove", "-z", "--stdin", stdin=names)
    if tree.write_tree(()) != run.code.get("tree"):
        return "metadata/code.patch does not give the recorded code"
    return None


def rebuild(run: StoredRun, folder: Path) -> Rebuilt:
    """Put the code of a run, uncommitted and untracked files included, into a git worktree.

    One that is there already, and holds exactly this code, is used again.

    Args:
        run: The run.
        folder: The folder in which worktrees are made; each has the name of its code.

    Raises:
        RunError: There is no repository that has the code, or git cannot bring it back.
    """
    repository = find_repository(run)
    target = folder / run.experiment_id[:12]
    notes = _left_out(run)
    try:
        if target.exists() and not _holds(target, run):
            git(repository, "worktree", "remove", "--force", str(target))
        if not target.exists():
            ignore_folder(folder)
            add_worktree(repository, target, str(run.commit))
            patch = _patch_bytes(run)
            if run.dirty and patch:
                inside = Repository(target, _SECONDS)
                git(inside, "apply", "--whitespace=nowarn", "-", stdin=patch)
        exact = _holds(target, run)
    except GitError as error:
        raise RunError(f"the code of {run.id} cannot be rebuilt: {error}") from error
    if not exact and not notes:
        notes = ["the rebuilt code is not exactly the recorded one"]
    return Rebuilt(target, exact, tuple(notes))


def has_changed(run: StoredRun, root: Path) -> bool:
    """Whether the code where a run was started is known to be another now.

    Of a run that has gone on with other code before, it is no question.
    """
    if run.code.get("source") != "git" or any("code" in launch for launch in run.launches[1:]):
        return False
    cwd = run.launches[-1].get("cwd") if run.launches else None
    if not isinstance(cwd, str) or not os.path.isdir(cwd):
        return False
    with suppress(GitError, OSError), WorkingTree.of(Repository(Path(cwd), _SECONDS)) as working:
        return not _is_code_of(working, run, [root.resolve()])
    return False


def _untracked_lines(run: StoredRun) -> list[str]:
    """The record of the untracked modules of a run: path, size and digest of each."""
    extra, names = run.code.get("extra"), _untracked(run)
    lines = [line for line in extra if isinstance(line, str)] if isinstance(extra, list) else []
    return [line for line in lines if line.rsplit(" ", 2)[0] in names]


def _untracked(run: StoredRun) -> list[str]:
    names = run.code.get("untracked")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _is_code_of(tree: WorkingTree, run: StoredRun, exclude: Sequence[Path] = ()) -> bool:
    """Whether a working tree holds the tracked files of a run's code, and its untracked modules."""
    lines = _untracked_lines(run)
    names = [line.rsplit(" ", 2)[0] for line in lines]
    return (
        tree.capture(exclude=exclude).tree == run.code.get("tree")
        and all((tree.root / name).is_file() for name in names)
        and [tree.describe(name) for name in names] == lines
    )


def add_worktree(repository: Repository, target: Path, commit: str) -> None:
    """Check a commit out into a folder of its own, without a branch.

    Raises:
        GitError: Git cannot add the worktree.
    """
    git(repository, "worktree", "prune")  # of those whose folder was deleted
    git(repository, "worktree", "add", "--force", "--detach", str(target.absolute()), commit)


def ignore_folder(folder: Path) -> None:
    """Make a folder of ours that git does not look into."""
    folder.mkdir(parents=True, exist_ok=True)
    top = next((path for path in (folder, *folder.parents) if path.name == ".danling"), folder)
    with suppress(FileExistsError), open(top / ".gitignore", "x", encoding="utf-8") as file:
        file.write("*\n")


def script_in(worktree: Path, script: str, cwd: str | None) -> Path | None:
    """The file of a worktree that a script was, wherever the project lay at that time.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "train.py").write_text("")
        >>> script_in(folder, "train.py", "/home/me/project") == folder / "train.py"
        True
    """
    parts = Path(os.path.normpath(os.path.join(cwd or "/", script))).parts[1:]
    for start in range(len(parts)):
        candidate = worktree.joinpath(*parts[start:])
        if candidate.is_file():
            return candidate
    return None


def _holds(folder: Path, run: StoredRun) -> bool:
    with WorkingTree.of(Repository(folder, _SECONDS)) as tree:
        return _is_code_of(tree, run)


def _patch_bytes(run: StoredRun) -> bytes:
    try:
        return run.paths.code_patch.read_bytes()
    except OSError:
        return b""


def _left_out(run: StoredRun) -> list[str]:
    recorded: Any = run.launches[0].get("patch") if run.launches else None
    left_out = recorded.get("left_out") if isinstance(recorded, dict) else None
    notes = [f"not in the patch: {line}" for line in left_out or [] if isinstance(line, str)]
    if run.code.get("partial"):
        notes.append("the code could not be read in time when the run began")
    if run.dirty and not _patch_bytes(run):
        notes.append("its uncommitted code was not saved: metadata/code.patch is missing")
    return notes


def commits_between(repository: Repository, old: str, new: str) -> Sequence[str]:
    """The subjects of the commits that are in `new` and not in `old`, the newest first."""
    return git(repository, "log", "--format=%h %s", f"{old}..{new}").splitlines()
