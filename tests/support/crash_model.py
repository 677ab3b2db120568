"""A model of crashes: which directories may be found after the power failed during a commit.

`recording` notes the primitives (`danling.files.filesystem`) of real commits. `crash_states` then
stops after each of them and works out every state that the disk may be in, given what was not made
durable yet:

- `"kill"`: the process died, the system lives: everything that was called has happened.
- `"ordered"`: power failed under a journal that keeps the order of changes of names (ext4, xfs,
  btrfs): any prefix of them happened.
- `"weak"`: power failed, and POSIX promises no more than it says: any subset of them happened.

Content that was not synchronised is whole, missing, cut in half or zeros. A rename is atomic.

The idea is SQLite's and LazyFS's: a killed process loses nothing that it wrote, so that no test
which only kills can find a missing `fsync`.
"""

from __future__ import annotations

import itertools
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from danling.files import filesystem

Names = tuple[tuple[str, int], ...]
State = tuple[tuple[str, bytes], ...]
PRIMITIVES = [
    "open_new",
    "write",
    "fsync_file",
    "close",
    "fsync_directory",
    "make_directory",
    "replace",
    "link",
    "unlink",
]


@dataclass(frozen=True)
class Operation:
    """One call: what it was, and what it did to the names or to the content of an inode."""

    kind: str
    inode: int = 0
    data: bytes = b""
    added: str | None = None
    removed: str | None = None


@dataclass
class Recording:
    """The calls in order, and how many saves had returned before each."""

    operations: list[Operation] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    saves: int = 0

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.returned.append(self.saves)

    def without(self, index: int) -> Recording:
        """The same, had this line of the code been removed."""
        keep = [i for i in range(len(self.operations)) if i != index]
        return Recording(
            [self.operations[i] for i in keep], [self.returned[i] for i in keep], self.saves
        )

    def moved(self, index: int, to: int) -> Recording:
        """The same, had this call been made where another one was."""
        operations = list(self.operations)
        operations.insert(to, operations.pop(index))
        return Recording(operations, list(self.returned), self.saves)

    def indices(self, kind: str) -> list[int]:
        """Where calls of one kind are."""
        return [i for i, operation in enumerate(self.operations) if operation.kind == kind]


BEFORE_A_NAME = [
    "checkpoint.before_open",
    "checkpoint.after_open",
    "checkpoint.before_write",
    "checkpoint.after_write",
    "checkpoint.after_fsync",
    "checkpoint.after_keep",
]
"""The fail points of a save before a name leads to the new file."""

AFTER_A_NAME = [
    "checkpoint.after_replace",
    "checkpoint.after_link",
    "checkpoint.after_alias",
    "checkpoint.after_previous",
    "checkpoint.after_directory_fsync",
]
"""Those after it, up to where it is durable."""


class _Recorder:
    """Turns the arguments of primitives into operations on names and inodes."""

    def __init__(self, directory: Path, record: Recording) -> None:
        self.directory = directory
        self.record = record
        self.inodes: dict[str, int] = {}
        self.descriptors: dict[int, int] = {}

    def open_new(self, descriptor: int, path: Path) -> Operation:
        inode = len(self.record.operations) + 1
        self.inodes[path.name] = self.descriptors[descriptor] = inode
        return Operation("create", inode, added=path.name)

    def write(self, _: None, descriptor: int, data: bytes) -> Operation:
        return Operation("write", self.descriptors[descriptor], bytes(data))

    def fsync_file(self, _: None, descriptor: int) -> Operation:
        return Operation("fsync_file", self.descriptors[descriptor])

    def close(self, _: None, descriptor: int) -> Operation:
        return Operation("close", self.descriptors[descriptor])

    def fsync_directory(self, _: None, path: Path) -> Operation:
        return Operation("fsync_directory" if path == self.directory else "fsync_parent")

    def make_directory(self, _: None, path: Path) -> Operation:
        return Operation("make_directory")

    def replace(self, _: None, source: Path, target: Path) -> Operation:
        inode = self.inodes[target.name] = self.inodes.pop(source.name)
        return Operation("replace", inode, added=target.name, removed=source.name)

    def link(self, _: None, source: Path, target: Path) -> Operation:
        inode = self.inodes[target.name] = self.inodes[source.name]
        return Operation("link", inode, added=target.name)

    def unlink(self, _: None, path: Path) -> Operation:
        return Operation("unlink", removed=path.name)

    def noting(self, name: str) -> Callable[..., Any]:
        original, describe = getattr(filesystem, name), getattr(self, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            self.record.add(describe(result, *arguments))
            return result

        return call


@contextmanager
def recording(directory: Path) -> Iterator[Recording]:
    """Notes what the primitives do in `directory` while the block runs; they still do it."""
    record = Recording()
    recorder = _Recorder(directory, record)
    with pytest.MonkeyPatch.context() as patch:
        for name in PRIMITIVES:
            patch.setattr(filesystem, name, recorder.noting(name))
        yield record


def crash_states(record: Recording, mode: str) -> Iterator[tuple[int, State]]:
    """Every directory that a crash may leave, with the number of saves that had returned."""
    seen = set()
    for stop in range(len(record.operations) + 1):
        done = record.operations[:stop]
        returned = record.returned[stop] if stop < len(record.operations) else record.saves
        contents, durable = _contents(done)
        for names in _directories(done, mode):
            for state in _with_contents(names, contents, durable if mode != "kill" else None):
                if (returned, state) not in seen:
                    seen.add((returned, state))
                    yield returned, state


def materialise(state: State, directory: Path) -> None:
    """Makes a real directory of a state; names of one inode become hard links."""
    directory.mkdir(parents=True)
    first: dict[bytes, Path] = {}
    for name, data in state:
        path = directory / name
        if data in first:
            path.hardlink_to(first[data])
        else:
            path.write_bytes(data)
            first[data] = path


def exit_status(child: Callable[[], object]) -> int:
    """Runs a function in a forked process: 0, 1 after an exception, or minus the signal.

    Everything is imported by then, so that a case costs milliseconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's own threads hold no locks
        process = os.fork()
    if process == 0:
        try:
            child()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _contents(done: list[Operation]) -> tuple[dict[int, bytes], set[int]]:
    """The content of each inode, and those whose content is all on the disk."""
    contents: dict[int, bytes] = {}
    durable: set[int] = set()
    for operation in done:
        if operation.kind in ("create", "write"):
            inode = operation.inode
            contents[inode] = contents.get(inode, b"") + operation.data
            durable.discard(inode)
        elif operation.kind == "fsync_file":
            durable.add(operation.inode)
    return contents, durable


def _directories(done: list[Operation], mode: str) -> Iterator[Names]:
    """The sets of names that the disk may hold."""
    kinds = [operation.kind for operation in done]
    if mode != "kill" and "make_directory" in kinds and "fsync_parent" not in kinds:
        yield ()  # the directory itself is not durable yet
    synced = max((i for i, op in enumerate(done) if op.kind == "fsync_directory"), default=-1)
    changes = [op for op in done if op.added or op.removed]
    fixed = [op for op in done[: synced + 1] if op.added or op.removed]
    open_ = changes[len(fixed) :]
    if mode == "kill":
        choices: Iterator[tuple[Operation, ...]] = iter([tuple(open_)])
    elif mode == "ordered":
        choices = (tuple(open_[:count]) for count in range(len(open_) + 1))
    else:
        sizes = range(len(open_) + 1)
        choices = itertools.chain.from_iterable(itertools.combinations(open_, n) for n in sizes)
    for choice in choices:
        names: dict[str, int] = {}
        for operation in [*fixed, *choice]:
            if operation.removed:
                names.pop(operation.removed, None)
            if operation.added:
                names[operation.added] = operation.inode
        yield tuple(sorted(names.items()))


def _with_contents(
    names: Names, contents: dict[int, bytes], durable: set[int] | None
) -> Iterator[State]:
    """The names with every content that their inodes may have."""
    # a name that is not a checkpoint's is ignored by the reader, whatever is in it
    loose = sorted(
        {
            inode
            for name, inode in names
            if durable is not None and inode not in durable and not name.startswith(".")
        }
    )
    variants = [
        [data, b"", data[: len(data) // 2], bytes(len(data))]
        for data in (contents[inode] for inode in loose)
    ]
    for choice in itertools.product(*variants):
        chosen = contents | dict(zip(loose, choice, strict=True))
        yield tuple((name, chosen[inode]) for name, inode in names)
