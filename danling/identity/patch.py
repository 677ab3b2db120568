"""The uncommitted code of a run as a patch, without its secrets.

`git checkout <commit> && git apply code.patch` rebuilds the working tree byte for byte, except for
what the patch lists as left out: large files, files that hold keys, and hunks whose secrets are in
lines that git must find unchanged. Secrets in added lines are masked and listed too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from danling.identity.code import excluded_folders
from danling.identity.git import GitError, Repository
from danling.identity.redaction import has_key, is_key_file, mask
from danling.identity.worktree import LARGE_FILE, WorkingTree

__all__ = ["CodePatch", "code_patch"]


_NULL = "000000"  # the mode of a file that is not there
_GITLINK = "160000"
_HUNK = re.compile(rb"(?m)^(?=@@ )")
_POSITION = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)
_REVERSE = re.compile(rb"(?s)(GIT binary patch\n(?:literal|delta) \d+\n.*?\n\n).*")


@dataclass(frozen=True)
class CodePatch:
    """A patch from the commit to the working tree."""

    data: bytes = b""
    """The patch for `git apply`; empty for a clean working tree."""
    left_out: tuple[str, ...] = ()
    """Files that the patch does not rebuild exactly, each with the reason."""
    note: str | None = None
    """Why there is no patch although there may be changes: no git, or not in time."""


@dataclass(frozen=True)
class _Change:
    path: str
    old_mode: str
    new_mode: str
    old_id: str
    new_id: str
    status: str

    @property
    def sections(self) -> int:
        """Git shows a file that became a link, or the reverse, as deleted and created."""
        return 2 if self.status == "T" else 1


def code_patch(
    start: Path,
    *,
    untracked: Sequence[str] = (),
    exclude: Sequence[Path] = (),
    timeout: float = 60.0,
    cap: int = LARGE_FILE,
) -> CodePatch:
    """Make the patch of the repository around `start`; never fails.

    Args:
        start: A folder in the working tree, as for `danling.identity.code.read_code`.
        untracked: Untracked files that are in the patch too, as `Code.untracked` names them.
        exclude: Folders that are output and not code.
        timeout: Seconds after which there is no patch.
        cap: Bytes above which a file is left out.

    Example:
        >>> code_patch(getfixture("tmp_path")).data
        b''
    """
    resolved = Path(start).resolve()
    outside = excluded_folders(resolved, exclude)
    try:
        parts = list(_patches(Repository(resolved, timeout), untracked, outside, cap, ""))
    except (GitError, OSError) as error:
        return CodePatch(note=str(error))
    left_out = sorted({line for part in parts for line in part.left_out})
    return CodePatch(b"".join(part.data for part in parts), tuple(left_out))


def _patches(
    repository: Repository,
    untracked: Sequence[str],
    exclude: Sequence[Path],
    cap: int,
    prefix: str,
) -> Iterator[CodePatch]:
    with WorkingTree.of(repository) as tree:
        status = tree.status(exclude)
        large = [path for path in untracked if tree.is_large(path, cap)]
        small = [path for path in untracked if path not in set(large)]
        yield CodePatch(
            left_out=tuple(f"{prefix}{tree.describe(path)}: too large" for path in large)
        )
        yield _Patch(tree, cap, prefix).make(status.commit, [*status.changed, *small])
    for path in status.nested:  # `git apply` finds the files of a submodule in its folder
        inner = Repository(tree.root / path, repository.deadline - time.monotonic())
        yield from _patches(inner, (), exclude, cap, f"{prefix}{path}/")


class _Patch:
    """Make the patch of one repository, noting what is left out of it."""

    def __init__(self, tree: WorkingTree, cap: int, prefix: str) -> None:
        self.tree = tree
        self.cap = cap
        self.prefix = prefix
        self.left_out: list[str] = []

    def make(self, commit: str | None, paths: Sequence[str]) -> CodePatch:
        old = self.tree.head_tree(commit)
        changes = self._changes(old, self.tree.write_tree(paths))
        kept = [change for change in changes if self._is_kept(change)]
        self._restore([change for change in changes if change not in set(kept)])
        sections = self._sections(old, self.tree.write_tree(()))
        owners = [change for change in kept for _ in range(change.sections)]
        if len(owners) != len(sections):
            raise GitError(f"git shows {len(sections)} changes where {len(owners)} were expected")
        data = b"".join(map(self._without_secrets, owners, sections))
        return CodePatch(data, tuple(self.left_out))

    def _changes(self, old: str, new: str) -> list[_Change]:
        output = self.tree.run("diff-tree", "-r", "-z", "--raw", "--no-renames", old, new)
        fields = os.fsdecode(output).split("\0")
        pairs = zip(fields[::2], fields[1::2], strict=False)
        changes = []
        for details, path in pairs:
            old_mode, new_mode, old_id, new_id, status = details.removeprefix(":").split(" ")
            changes.append(_Change(path, old_mode, new_mode, old_id, new_id, status))
        return changes

    def _sections(self, old: str, new: str) -> list[bytes]:
        prefixes = (f"--src-prefix=a/{self.prefix}", f"--dst-prefix=b/{self.prefix}")
        options = ["-r", "-p", "--binary", "--full-index", "--no-renames", "--no-color"]
        options += ["--no-ext-diff", "--no-textconv"]
        output = self.tree.run("diff-tree", *options, *prefixes, old, new)
        return re.split(rb"(?m)^(?=diff --git )", output)[1:]

    def _is_kept(self, change: _Change) -> bool:
        if is_key_file(change.path):
            self._leave_out(change, "a key file")
        elif change.new_mode != _GITLINK and self.tree.is_large(change.path, self.cap):
            self.left_out.append(f"{self.prefix}{self.tree.describe(change.path)}: too large")
        else:
            return True
        return False

    def _restore(self, changes: Sequence[_Change]) -> None:
        """Put the files that are left out back to what the commit has."""
        lines = [f"{change.old_mode} {change.old_id}\t{change.path}\0" for change in changes]
        if lines:
            text = os.fsencode("".join(lines))
            self.tree.run("update-index", "-z", "--index-info", stdin=text)

    def _without_secrets(self, change: _Change, section: bytes) -> bytes:
        if b"\nGIT binary patch\n" in section:
            return self._binary(change, section)
        head, *hunks = _HUNK.split(section)
        shift = 0  # lines that hunks left out would have added: later hunks move up by as many
        kept: list[bytes] = []
        for hunk in hunks:
            masked, lengthens, has_secret = _masked_hunk(hunk, shift)
            if masked is None:
                self._leave_out(change, "a change next to a secret")
                shift += lengthens
                continue
            kept.append(masked)
            if has_secret:
                self._leave_out(change, "secrets masked")
        is_partial = _NULL not in (change.old_mode, change.new_mode)
        if len(kept) < len(hunks) and not (is_partial and (kept or b"\nnew mode " in head)):
            return b""
        return head + b"".join(kept)

    def _binary(self, change: _Change, section: bytes) -> bytes:
        if change.new_mode != _NULL:
            content = self.tree.run("cat-file", "blob", change.new_id)
            text = content.replace(b"\0", b"").decode("latin-1")  # UTF-16 without its zeros
            is_text = len(text) == len(content)
            if has_key(text) or (is_text and mask(text) != text):
                self._leave_out(change, "a secret")
                return b""
        # Without the way back, which holds the old content: `git apply` does not need it.
        return _REVERSE.sub(rb"\1", section)

    def _leave_out(self, change: _Change, reason: str) -> None:
        self.left_out.append(f"{self.prefix}{change.path}: {reason}")


def _masked_hunk(hunk: bytes, shift: int) -> tuple[bytes | None, int, bool]:
    """Mask the added lines of a hunk, which begins `shift` lines further up than it says.

    Returns:
        The hunk, or None where a secret is in a line that git must find unchanged; the number of
        lines by which it lengthens the file; whether a line was masked.
    """
    first, *lines = hunk.decode("utf-8", "surrogateescape").split("\n")
    found = _POSITION.match(first)
    if found is None:
        raise GitError(f"git printed a hunk that starts with {first!r}")
    old, old_lines, new, new_lines, context = found.groups()
    lengthens = int(new_lines or 1) - int(old_lines or 1)
    contents = mask("\n".join(line[1:] for line in lines)).split("\n")
    masked = [line[:1] + content for line, content in zip(lines, contents, strict=True)]
    changed = [line[0] for line, safe in zip(lines, masked, strict=True) if line != safe]
    if set(changed) - {"+"}:
        return None, lengthens, True
    old_range = old if old_lines is None else f"{old},{old_lines}"
    start = int(new) - shift
    new_range = start if new_lines is None else f"{start},{new_lines}"
    # git shows the line that opens the function after the numbers: it may hold a secret too
    first = f"@@ -{old_range} +{new_range} @@{mask(context)}"
    text = "\n".join([first, *masked])
    return text.encode("utf-8", "surrogateescape"), lengthens, bool(changed)
