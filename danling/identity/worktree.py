"""The exact content of a git working tree, read without writing anything of the user's.

The index is a copy, new objects go to a temporary folder, locks are not taken, and configuration
that starts programs (hooks, file system monitors, filters) is switched off. The exception is the
filter of Git LFS, without which every large file would look modified.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from danling.identity.git import GitTimeoutError, Repository

__all__ = ["LARGE_FILE", "Status", "TreeState", "WorkingTree", "file_digest"]


LARGE_FILE = 1 << 20
"""Bytes above which a file is left out of a patch."""

_CONFIG = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.looseCompression": "0",
    "core.bigFileThreshold": str(LARGE_FILE),
    "protocol.allow": "never",
}


@dataclass(frozen=True)
class Status:
    """The differences of the working tree from the commit, in paths relative to its root."""

    commit: str | None
    branch: str | None
    changed: tuple[str, ...]
    """Tracked files that were modified, added or deleted."""
    nested: tuple[str, ...]
    """Submodules that are not clean."""


@dataclass(frozen=True)
class TreeState:
    """The content of a working tree at one moment."""

    commit: str | None
    branch: str | None
    tree: str
    """Id of a git tree of the tracked files: the commit's own when nothing has changed."""
    extra: tuple[str, ...]
    """The content outside the tree, one line each: untracked modules, changes in submodules."""
    untracked: tuple[str, ...]
    """The untracked modules."""
    dirty: bool


class WorkingTree:
    """The working tree of a repository, seen through a copy of the index.

    `WorkingTree.of(repository)` makes the copy and removes it.
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.root = repository.root
        self._variables = {
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(repository.common_dir / "objects"),
        }
        self._config = {**_CONFIG, "lfs.storage": str(folder / "lfs")}
        self._tracked: set[str] = set()
        self._submodules: set[str] = set()
        (folder / "objects").mkdir()
        with suppress(FileNotFoundError):  # no index before the first `git add`
            # With its times: git compares files with the time of the index to find racy edits.
            shutil.copy2(repository.git_dir / "index", folder / "index")

    @classmethod
    @contextmanager
    def of(cls, repository: Repository) -> Iterator[WorkingTree]:
        """Open the working tree for the length of a `with` block."""
        with TemporaryDirectory(prefix="danling-git-") as folder:
            tree = cls(repository, Path(folder))
            tree._disable_filters()
            tree._read_index()
            yield tree

    def run(self, *arguments: str, stdin: bytes = b"", accept: Sequence[int] = (0,)) -> bytes:
        """Run git with the copied index and the temporary objects; see `Repository.run`."""
        return self.repository.run(
            *arguments, stdin=stdin, accept=accept, config=self._config, **self._variables
        )

    def status(self, exclude: Sequence[Path] = ()) -> Status:
        """Compare the tracked files with the commit; untracked ones are not looked for.

        What is under `exclude` and this process's own output files do not count.
        """
        inside = [path.relative_to(self.root) for path in exclude if self.root in path.parents]
        pathspecs = [f":(top,exclude,literal){path.as_posix()}" for path in inside]
        output = self.run(
            "status",
            "--porcelain=v2",
            "-z",
            "--branch",
            "--untracked-files=no",
            "--no-renames",
            "--ignore-submodules=untracked",
            "--",
            ":(top)",
            *pathspecs,
        )
        status, outputs = _parse_status(output), _own_outputs()
        if not outputs:
            return status
        changed = tuple(path for path in status.changed if self._file_id(path) not in outputs)
        return replace(status, changed=changed)

    def untracked(self, files: Iterable[Path], exclude: Sequence[Path] = ()) -> list[str]:
        """The files that git neither tracks nor ignores, relative to the root and sorted.

        Files of submodules, under `exclude` and this process's own output files are left out.
        """
        outputs = _own_outputs()
        names = set()
        for path in files:
            if not path.is_relative_to(self.root) or any(map(path.is_relative_to, exclude)):
                continue
            name = path.relative_to(self.root).as_posix()
            if name in self._tracked or self._submodule_of(name):
                continue
            if not outputs or self._file_id(name) not in outputs:
                names.add(name)
        if not names:
            return []
        asked = _names(sorted(names))
        output = self.run("check-ignore", "-z", "--stdin", stdin=asked, accept=(0, 1))  # 1: none
        return sorted(names - set(os.fsdecode(output).split("\0")))

    def capture(
        self, loaded: Iterable[Path] = (), exclude: Sequence[Path] = (), *, skip: str | None = None
    ) -> TreeState:
        """Hash the tracked files as they are, and those untracked files that are loaded.

        Args:
            loaded: Files of modules; what else is untracked does not count.
            exclude: The paths to leave out, as for `status`.
            skip: The end of the names of tracked files whose changes do not count.
        """
        loaded = list(loaded)
        status = self.status(exclude)
        changed = [path for path in status.changed if not (skip and path.endswith(skip))]
        untracked = self.untracked(loaded, exclude)
        extra = [self.describe(path) for path in untracked]
        names = [path.relative_to(self.root).as_posix() for path in loaded]
        nested = {*status.nested, *filter(None, map(self._submodule_of, names))}
        for path in sorted(nested):
            extra += self._nested(path, loaded, exclude)
        head = self.head_tree(status.commit)
        tree = head
        if changed or status.commit is None:
            tree = self.write_tree(changed)
        dirty = bool(extra) or tree != head
        return TreeState(
            status.commit, status.branch, tree, tuple(sorted(extra)), tuple(untracked), dirty
        )

    def is_large(self, path: str, limit: int = LARGE_FILE) -> bool:
        """Whether a file is too large to be copied, or cannot be read."""
        try:
            details = os.lstat(self.root / path)
        except OSError:  # deleted since
            return False
        if not stat.S_ISREG(details.st_mode):
            return False
        return details.st_size > limit or not os.access(self.root / path, os.R_OK)

    def describe(self, path: str) -> str:
        """One line about a file that is not copied: path, size, SHA-256."""
        size = os.lstat(self.root / path).st_size
        try:
            digest = file_digest(self.root / path, self.repository.deadline)
        except PermissionError:
            digest = "unreadable"
        return f"{path} {size} {digest}"

    def write_tree(self, paths: Sequence[str]) -> str:
        """Hash the content of `paths` (deleted ones included) and return the whole tree's id."""
        gone = [path for path in paths if self._became_folder(path)]
        there = [path for path in paths if path not in set(gone)]
        for option, names in (("--force-remove", gone), ("--remove", there)):
            if names:
                self.run("update-index", "--add", option, "-z", "--stdin", stdin=_names(names))
        return self.run("write-tree", "--missing-ok").decode().strip()

    def head_tree(self, commit: str | None) -> str:
        """The id of the commit's tree; without a commit, that of the empty tree."""
        if commit is None:
            return self.run("hash-object", "-w", "-t", "tree", "--stdin").decode().strip()
        return self.run("rev-parse", f"{commit}^{{tree}}").decode().strip()

    def _disable_filters(self) -> None:
        names = r"^filter\."
        output = self.run("config", "--name-only", "-z", "--get-regexp", names, accept=(0, 1))
        names_found = {key.rpartition(".")[0] for key in os.fsdecode(output).split("\0") if key}
        for name in names_found - {"filter.lfs"}:
            self._config.update({f"{name}.{key}": "" for key in ("clean", "smudge", "process")})
            self._config[f"{name}.required"] = "false"

    def _read_index(self) -> None:
        """Learn what is tracked, and show git the edits that the user told it not to notice."""
        hidden = []
        for entry in filter(None, os.fsdecode(self.run("ls-files", "-v", "-s", "-z")).split("\0")):
            details, _, path = entry.partition("\t")
            tag, mode, *_ = details.split(" ")
            (self._submodules if mode == "160000" else self._tracked).add(path)
            if tag.islower() or tag == "S":
                hidden.append(path)
        present = [path for path in hidden if os.path.lexists(self.root / path)]
        if present:
            for option in ("--no-assume-unchanged", "--no-skip-worktree"):
                self.run("update-index", option, "-z", "--stdin", stdin=_names(present))

    def _submodule_of(self, path: str) -> str | None:
        """The submodule that holds a path."""
        if not self._submodules:
            return None
        parents = (parent.as_posix() for parent in PurePosixPath(path).parents)
        return next((parent for parent in parents if parent in self._submodules), None)

    def _became_folder(self, path: str) -> bool:
        place = self.root / path
        return path not in self._submodules and place.is_dir() and not place.is_symlink()

    def _file_id(self, path: str) -> tuple[int, int] | None:
        try:
            details = os.lstat(self.root / path)
        except OSError:
            return None
        return details.st_dev, details.st_ino

    def _nested(self, path: str, loaded: Sequence[Path], exclude: Sequence[Path]) -> list[str]:
        repository = Repository(self.root / path, self.repository.deadline - time.monotonic())
        if repository.root == self.root:  # git takes the folder for a repository, GitPython not
            return [f"{path} unreadable"]
        inside = [file for file in loaded if file.is_relative_to(repository.root)]
        with WorkingTree.of(repository) as tree:
            snapshot = tree.capture(inside, exclude)
        if not snapshot.dirty:
            return []
        inner = [f"{path}/{line}" for line in snapshot.extra]
        return [f"{path} {snapshot.commit} {snapshot.tree}", *inner]


def file_digest(path: Path, deadline: float) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        GitTimeoutError: The deadline (of `time.monotonic`) passed while reading.
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            if time.monotonic() > deadline:
                raise GitTimeoutError(f"reading {path.name} took too long")
    return digest.hexdigest()


def _own_outputs() -> set[tuple[int, int]]:
    """Device and inode of the files that this process's standard streams are redirected to."""
    found = set()
    for descriptor in (1, 2):
        with suppress(OSError):  # a closed descriptor
            details = os.fstat(descriptor)
            if stat.S_ISREG(details.st_mode):
                found.add((details.st_dev, details.st_ino))
    return found


def _names(paths: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


def _quoted(path: Path) -> str:
    """A path for a list that git splits at colons."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _parse_status(output: bytes) -> Status:
    commit, branch = None, None
    changed: list[str] = []
    nested: list[str] = []
    for line in filter(None, os.fsdecode(output).split("\0")):
        kind, _, rest = line.partition(" ")
        if kind == "#":
            key, _, value = rest.partition(" ")
            commit = value if key == "branch.oid" and value != "(initial)" else commit
            branch = value if key == "branch.head" and value != "(detached)" else branch
        else:  # "1": changed, "u": unmerged; the path is the last field
            path = rest.split(" ", 9 if kind == "u" else 7)[-1]
            changed.append(path)
            if rest[3] == "S" and rest[5:7] != "..":
                nested.append(path)
    return Status(commit, branch, tuple(changed), tuple(nested))
