"""The code that runs: what of it is committed, what has changed, and what could not be read.

Code of a run are the tracked files of the repository around the main script, and of the untracked
ones the main script and the modules that it has imported. Other untracked files, as logs, data and
a virtual environment, are not code, whatever happens to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import monotonic
from uuid import uuid4

from danling.identity.git import GitError, GitTimeoutError, Repository
from danling.identity.modules import project_files, typed_code
from danling.identity.worktree import WorkingTree, file_digest

__all__ = ["Code", "excluded_folders", "read_code", "uncounted_files"]


_SOURCES = (
    *(".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".sh", ".sbatch"),
    *(".slurm", ".yaml", ".yml", ".toml", ".cfg", ".ini"),
)
_MOST_SOURCES = 100  # untracked ones that the patch holds beside the modules of the run
_MOST_ENTRIES = 2000  # of a folder that are looked at for them


@dataclass(frozen=True)
class Code:
    """The code that runs, as far as it could be found out."""

    commit: str | None = None
    """Git commit; None outside a repository and before the first commit."""
    branch: str | None = None
    tree: str | None = None
    """Git tree of the tracked files as they are; without git a digest of the source files. Where
    `partial` is set, random: code that could not be read is nobody else's."""
    dirty: bool | None = None
    """Whether the code that runs differs from the commit; None where that is unknown."""
    partial: bool = False
    """Not everything could be read."""
    source: str = "files"
    """"git", or "files": the main script and the modules it had imported from its project."""
    extra: tuple[str, ...] = ()
    """The code outside the tree: `path size digest` of untracked modules, of source files outside
    git and of code that is in no file, `path commit tree` of changed submodules."""
    note: str | None = None
    """Why git was not used, or not to the end."""
    untracked: tuple[str, ...] = ()
    """Untracked files that belong into the patch: modules of the run, which `extra` describes too,
    and source files that lie beside modules and are no part of the ids."""


def read_code(start: Path, *, exclude: Sequence[Path] = (), timeout: float = 60.0) -> Code:
    """Find out which code runs; never fails, and never takes much longer than `timeout`.

    Args:
        start: The folder of the main script, or the current folder where there is none.
        exclude: Folders that are output and not code. One that holds `start` is not excluded.
        timeout: Seconds after which the result is marked partial.

    Example:
        >>> code = read_code(getfixture("tmp_path"))
        >>> code.source, code.commit, code.partial
        ('files', None, False)
    """
    start = Path(os.path.realpath(start))
    outside = excluded_folders(start, exclude)
    deadline = monotonic() + timeout
    repository: Repository | None = None
    try:
        repository = Repository(start, timeout)
        code = _from_git(repository, outside)
    except GitTimeoutError as error:
        commit = repository.head() if repository else None
        code = Code(commit=commit, partial=True, source="git", note=str(error))
    except (GitError, OSError) as error:
        commit = repository.head() if repository else None
        code = _from_files(start, commit, str(error), deadline)
    return _with_typed(code)


def uncounted_files(start: Path, files: Iterable[Path], code: Code, timeout: float) -> list[str]:
    """The files, imported after the code was read, that are no part of the ids; never fails.

    Tracked files are part of them, imported or not.

    Args:
        start: The start, as for `read_code`.
        files: Files of modules.
        code: The code that was read.
        timeout: Seconds after which git is not waited for, and all files are named.

    Returns:
        Their paths, relative to the folder of the project.
    """
    start = Path(os.path.realpath(start))
    files = list(files)
    if code.source == "git":
        try:
            with WorkingTree.of(Repository(start, timeout)) as tree:
                return tree.untracked(files)
        except (GitError, OSError):
            pass  # better one that was counted than none that was not
    return [os.path.relpath(path, start) for path in files]


def excluded_folders(start: Path, exclude: Sequence[Path]) -> list[Path]:
    """The folders of `exclude` that do not hold `start`; of links, their targets too."""
    named = [Path(os.path.realpath(path.parent)) / path.name for path in map(Path, exclude)]
    resolved = [Path(os.path.realpath(path)) for path in exclude]
    return [path for path in [*named, *resolved] if path != start and path not in start.parents]


def _from_git(repository: Repository, exclude: Sequence[Path]) -> Code:
    loaded = project_files(repository.root)
    # of a notebook the cells that ran are the code; its file changes with every output
    skip = ".ipynb" if "<cells>" in (typed_code() or ()) else None
    with WorkingTree.of(repository) as tree:
        snapshot = tree.capture(loaded, exclude, skip=skip)
        folders = {path.parent for path in loaded}
        beside = tree.untracked(_sources_in(folders, loaded), exclude)
    return Code(
        commit=snapshot.commit,
        branch=snapshot.branch,
        tree=snapshot.tree,
        dirty=snapshot.dirty,
        source="git",
        extra=snapshot.extra,
        untracked=(*snapshot.untracked, *beside[:_MOST_SOURCES]),
    )


def _sources_in(folders: Iterable[Path], known: Iterable[Path]) -> list[Path]:
    """Source files in some folders, not in those below them."""
    found = set()
    for folder in folders:
        try:
            names = os.listdir(folder)[:_MOST_ENTRIES]
        except OSError:
            continue
        found |= {folder / name for name in names if name.endswith(_SOURCES)}
    return sorted(path for path in found - set(known) if path.is_file())


def _from_files(start: Path, commit: str | None, note: str, deadline: float) -> Code:
    root = start
    while (root / "__init__.py").is_file():  # `python -m package.train` imports from above
        root = root.parent
    lines: list[str] = []
    partial = False
    for path in sorted(project_files(root)):
        try:
            digest = file_digest(path, deadline)
            lines.append(f"{path.relative_to(root).as_posix()} {path.stat().st_size} {digest}")
        except GitTimeoutError as error:
            partial, note = True, f"{note}; {error}"
            break
        except OSError:  # a module of a zip file, a script deleted since
            continue
    return Code(commit=commit, tree=_digest(lines), partial=partial, extra=tuple(lines), note=note)


def _with_typed(code: Code) -> Code:
    """The code with that of the main program which is in no file."""
    typed = typed_code()
    if typed is None and not code.partial:
        text = "the main program is in no file: what was typed or piped into Python is not known"
        code = replace(code, partial=True, note="; ".join(filter(None, [code.note, text])))
    if code.partial:
        return replace(code, tree=uuid4().hex)
    if not typed:
        return code
    lines = [
        f"{name} {len(text.encode(errors='surrogateescape'))} {_digest([text])}"
        for name, text in typed.items()
    ]
    extra = (*code.extra, *lines)
    if code.source == "git":
        return replace(code, extra=extra, dirty=True)
    return replace(code, extra=extra, tree=_digest(extra))


def _digest(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
