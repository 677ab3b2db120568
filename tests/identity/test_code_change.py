"""What is said of code that has changed since a run began."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from danling.identity.code import Code, read_code
from danling.identity.code_change import describe_change
from danling.identity.patch import code_patch
from tests.support.repositories import commit_all, files_of, git, make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def begin(repository: Path) -> tuple[dict[str, Any], Path]:
    """The code of a run that begins now, and its patch."""
    patch = repository.parent / "code.patch"
    patch.write_bytes(code_patch(repository).data)
    return asdict(read_code(repository)), patch


def change(repository: Path, run: tuple[dict[str, Any], Path], **options: Any) -> str:
    then, patch = run
    return describe_change(then, read_code(repository), repository, patch=patch, **options)


def test_commits_are_named_and_their_lines_are_counted(repository: Path):
    run = begin(repository)
    (repository / "train.py").write_text("lr = 0.2\nsteps = 3\n")
    (repository / "new.py").write_text("a = 1\n")
    after = commit_all(repository)

    assert change(repository, run) == (
        f"commit {run[0]['commit']} then, commit {after} now; "
        "2 files changed, 3 insertions(+), 1 deletion(-)"
    )


def test_uncommitted_changes_count_on_both_sides(repository: Path):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / "draft.py").write_text("a = 1\nb = 2\n")
    git(repository, "add", "draft.py")
    run = begin(repository)
    commit_all(repository)
    (repository / "draft.py").write_text("a = 1\nb = 3\n")
    before = files_of(repository)

    told = change(repository, run)

    assert f"commit {run[0]['commit']} with uncommitted changes then" in told
    assert told.endswith(
        "with uncommitted changes now; 1 file changed, 1 insertion(+), 1 deletion(-)"
    )
    assert files_of(repository) == before
    assert git(repository, "status", "--short") == "M draft.py"


def test_a_commit_of_what_was_uncommitted_before_changes_no_line(repository: Path):
    (repository / "train.py").write_text("lr = 0.2\n")
    run = begin(repository)
    commit_all(repository)

    assert change(repository, run).endswith("now; no line changed")


def test_a_patch_that_holds_less_makes_the_numbers_approximate(repository: Path):
    (repository / "train.py").write_text('token = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"\n')
    run = begin(repository)
    (repository / "package" / "model.py").write_text("layer = 1\n")
    left_out = code_patch(repository).left_out

    assert "; about 2 files changed" in change(repository, run, left_out=left_out)


@pytest.mark.parametrize("damage", ["gone", "nonsense"])
def test_a_patch_that_cannot_be_applied_leaves_the_difference_of_the_commits(
    repository: Path, damage: str
):
    (repository / "train.py").write_text("lr = 0.2\n")
    run = begin(repository)
    (repository / "train.py").write_text("lr = 0.3\n")
    if damage == "gone":
        run[1].unlink()
    else:
        run[1].write_text("diff --git a/nowhere b/nowhere\n")

    assert change(repository, run).endswith("; about 1 file changed, 1 insertion(+), 1 deletion(-)")


def test_before_the_first_commit_everything_is_new(tmp_path: Path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "train.py").write_text("lr = 0.2\n")
    run = asdict(Code(source="git", dirty=True)), tmp_path / "none"
    after = commit_all(tmp_path)

    assert change(tmp_path, run) == (
        f"no commit with uncommitted changes then, commit {after} now; "
        "about 1 file changed, 1 insertion(+)"
    )


def test_untracked_modules_are_named_beside_the_lines(repository: Path):
    then, patch = begin(repository)
    then |= {"extra": ["helper.py 4 c0ffee"]}

    assert change(repository, (then, patch)).endswith(
        "no line changed; of what is not tracked 1 file changed (helper.py)"
    )


def test_a_commit_that_is_not_here_is_no_obstacle(repository: Path):
    then, patch = begin(repository)

    told = change(repository, (then | {"commit": "0" * 40}, patch))

    assert f"commit {'0' * 40} then" in told
    assert "the lines were not counted (git failed: " in told


def test_a_slow_git_costs_no_more_than_the_timeout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, now = begin(repository), Code(commit="1" * 40, source="git")
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()

    told = describe_change(run[0], now, repository, patch=run[1], timeout=0.5)

    assert time.monotonic() - start < 50  # git itself takes a minute
    assert "the lines were not counted (git did not answer in time)" in told


def test_without_git_the_changed_files_are_counted(tmp_path: Path):
    then = asdict(Code(extra=("a.py 3 00", "b.py 3 00", "gone.py 3 00")))
    now = Code(extra=("a.py 3 11", "b.py 3 00", "new file.py 3 00"))

    told = describe_change(then, now, tmp_path, patch=tmp_path / "none")

    assert told == "3 files changed (a.py, gone.py, new file.py)"
