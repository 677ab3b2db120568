"""The content of a working tree is read exactly, and nothing in it is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from danling.identity.git import Repository
from danling.identity.worktree import TreeState, WorkingTree
from tests.support.repositories import commit_all, git, make_repository


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def snapshot(folder: Path, *exclude: Path, loaded: Sequence[str] = ()) -> TreeState:
    with WorkingTree.of(Repository(folder, timeout=10)) as tree:
        return tree.capture([folder / name for name in loaded], exclude)


def committed_tree(folder: Path) -> str:
    """What git itself says is the tree of everything in the working tree."""
    commit_all(folder)
    return git(folder, "rev-parse", "HEAD^{tree}")


def test_a_clean_tree_is_that_of_the_commit(repository):
    seen = snapshot(repository)

    assert seen == TreeState(
        commit=git(repository, "rev-parse", "HEAD"),
        branch="main",
        tree=git(repository, "rev-parse", "HEAD^{tree}"),
        extra=(),
        untracked=(),
        dirty=False,
    )


def test_a_dirty_tree_is_the_one_that_git_would_commit(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / "package" / "model.py").unlink()
    (repository / "new\n'name\" \\ü.py").write_bytes(b"\xff\x00 no newline")
    (repository / "tool.sh").write_text("#!/bin/sh\n")
    (repository / "tool.sh").chmod(0o755)
    (repository / "link").symlink_to("train.py")
    (repository / ".gitignore").write_text("*.log\n")
    (repository / "run.log").write_text("ignored")
    git(repository, "add", "--all")

    seen = snapshot(repository)

    assert (seen.dirty, seen.tree) == (True, committed_tree(repository))


def test_nothing_of_the_users_is_written(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    (repository / "new.py").write_text("new\n")
    git(repository, "add", "new.py")
    (repository / "new.py").write_text("newer\n")
    before = everything_in(repository)

    snapshot(repository)

    assert everything_in(repository) == before


def everything_in(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        details = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (details.st_mtime_ns, details.st_mode, content)
    return found


def test_what_is_staged_does_not_matter_only_what_is_there(repository):
    (repository / "train.py").write_text("lr = 0.2\n")
    git(repository, "add", "train.py")
    (repository / "train.py").write_text("lr = 0.1\n")

    assert snapshot(repository).dirty is False


def test_an_edit_of_the_same_size_in_the_same_moment_as_the_index_is_seen(repository):
    index = repository / ".git" / "index"
    script = repository / "train.py"
    details = script.stat()
    script.write_text("lr = 0.9\n")
    os.utime(script, ns=(details.st_atime_ns, details.st_mtime_ns))
    os.utime(index, ns=(details.st_mtime_ns, details.st_mtime_ns))

    assert snapshot(repository).dirty is True


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_edits_that_git_was_told_not_to_notice_are_seen(repository, flag):
    git(repository, "update-index", flag, "train.py")
    (repository / "train.py").write_text("lr = 0.2\n")
    assert git(repository, "status", "--porcelain") == ""

    assert snapshot(repository).dirty is True


def test_files_that_a_sparse_checkout_leaves_out_are_not_missing(repository):
    git(repository, "sparse-checkout", "set", "--no-cone", "/train.py")
    assert not (repository / "package").exists()

    assert snapshot(repository).dirty is False


def test_configuration_that_runs_programs_is_not_followed(repository, tmp_path):
    marker = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {marker}\ncat\n')
    program.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(program, hooks / "post-index-change")
    settings = {"core.fsmonitor": program, "core.hooksPath": hooks, "diff.external": program}
    settings |= {f"filter.evil.{kind}": program for kind in ("clean", "smudge", "process")}
    (repository / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    commit_all(repository)
    for key, value in settings.items():
        git(repository, "config", key, str(value))
    git(repository, "config", "filter.evil.required", "true")
    git(repository, "config", "diff.evil.textconv", str(program))
    (repository / "train.py").write_text("lr = 0.2\n")
    os.utime(repository / "package" / "model.py", (1, 1))
    marker.unlink(missing_ok=True)

    seen = snapshot(repository)

    assert seen.dirty is True
    assert not marker.exists(), marker.read_text()


def test_the_working_tree_of_a_conflict_counts_as_it_stands(repository):
    git(repository, "checkout", "--quiet", "-b", "other")
    (repository / "train.py").write_text("lr = 0.2\n")
    commit_all(repository)
    git(repository, "checkout", "--quiet", "main")
    (repository / "train.py").write_text("lr = 0.3\n")
    commit_all(repository)
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "merge", "other")

    seen = snapshot(repository)

    assert (seen.dirty, seen.tree) == (True, committed_tree(repository))


def test_a_file_that_became_a_folder_and_a_folder_that_became_a_file(repository):
    (repository / "train.py").unlink()
    (repository / "train.py").mkdir()
    (repository / "train.py" / "inner.py").write_text("inner\n")
    shutil.rmtree(repository / "package")
    (repository / "package").write_text("a file now\n")
    git(repository, "add", "--all")

    assert snapshot(repository).tree == committed_tree(repository)


def test_an_index_lock_left_by_a_crashed_git_is_no_obstacle(repository):
    (repository / ".git" / "index.lock").write_text("")
    (repository / "train.py").write_text("lr = 0.2\n")

    assert snapshot(repository).dirty is True
    assert (repository / ".git" / "index.lock").exists()


def test_before_the_first_commit_the_files_are_the_code(tmp_path):
    folder = tmp_path / "unborn"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "train.py").write_text("lr = 0.1\n")
    git(folder, "add", "train.py")

    seen = snapshot(folder)

    assert (seen.commit, seen.branch, seen.dirty) == (None, "main", True)
    assert seen.tree == committed_tree(folder)


def test_a_detached_head_has_a_commit_and_no_branch(repository):
    git(repository, "checkout", "--quiet", "--detach")

    seen = snapshot(repository)

    assert (seen.commit, seen.branch) == (git(repository, "rev-parse", "HEAD"), None)


def test_a_linked_worktree_is_looked_at_itself(repository, tmp_path):
    git(repository, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    (repository / "train.py").write_text("lr = 0.9\n")
    (tmp_path / "linked" / "train.py").write_text("lr = 0.2\n")

    seen = snapshot(tmp_path / "linked")

    assert (seen.branch, seen.tree) == ("side", committed_tree(tmp_path / "linked"))


def test_a_repository_that_uses_sha256_and_one_with_alternates(repository, tmp_path):
    (tmp_path / "modern").mkdir()
    git(tmp_path / "modern", "init", "--quiet", "--object-format=sha256")
    (tmp_path / "modern" / "train.py").write_text("lr = 0.1\n")
    git(tmp_path / "modern", "add", "train.py")
    git(tmp_path, "clone", "--quiet", "--shared", str(repository), "with: alternates")
    (tmp_path / "with: alternates" / "train.py").write_text("lr = 0.2\n")

    assert snapshot(tmp_path / "modern").tree == committed_tree(tmp_path / "modern")
    shared = snapshot(tmp_path / "with: alternates")
    assert shared.tree == committed_tree(tmp_path / "with: alternates")


def test_a_split_index_is_read_and_not_written(repository):
    git(repository, "update-index", "--split-index")
    (repository / "new.py").write_text("new\n")
    git(repository, "add", "new.py")
    before = contents_of(repository / ".git")  # git touches the shared part, as a sign of use

    seen = snapshot(repository)

    assert contents_of(repository / ".git") == before
    assert seen.tree == committed_tree(repository)


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_shallow_clone_has_a_commit(repository, tmp_path):
    (repository / "train.py").write_text("lr = 0.2\n")
    commit = commit_all(repository)
    git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), "shallow")

    seen = snapshot(tmp_path / "shallow")
    assert (seen.commit, seen.dirty) == (commit, False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_another_user_is_read(repository):
    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 4242, 4242)
    with pytest.raises(subprocess.CalledProcessError):  # "dubious ownership"
        git(repository, "status")

    assert snapshot(repository).dirty is False


def test_ownership_that_git_doubts_is_no_obstacle(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "status")

    assert snapshot(repository).dirty is False


def test_what_is_excluded_does_not_count_and_its_neighbours_do(repository):
    for name in ("experiments", "experiments2"):
        (repository / name).mkdir()
        (repository / name / "code.py").write_text("code")
    commit_all(repository)
    (repository / "experiments" / "code.py").write_text("other code")
    excluded = snapshot(repository, repository / "experiments")
    (repository / "experiments2" / "code.py").write_text("other code")

    assert excluded.dirty is False
    assert snapshot(repository, repository / "experiments").dirty is True


def test_files_that_this_process_writes_its_output_to_do_not_count(repository):
    script = "from danling.identity.git import Repository\n"
    script += "from danling.identity.worktree import WorkingTree\n"
    script += "from pathlib import Path; print('hello', flush=True)\n"
    script += "with WorkingTree.of(Repository(Path.cwd(), 10)) as tree:\n"
    script += "    print(tree.capture([Path.cwd() / 'errors.txt']).dirty)\n"
    (repository / "out.txt").write_text("")
    commit_all(repository)
    (repository / "errors.txt").write_text("")
    with open(repository / "out.txt", "w") as out, open(repository / "errors.txt", "a") as errors:
        subprocess.run(
            [sys.executable, "-c", script], cwd=repository, stdout=out, stderr=errors, check=True
        )

    assert (repository / "out.txt").read_text() == "hello\nFalse\n"


def test_an_untracked_file_counts_where_it_is_loaded_by_path_size_and_digest(repository):
    (repository / "helper.py").write_text("one\n")
    (repository / "output.log").write_text("x")
    unused = snapshot(repository)
    first = snapshot(repository, loaded=["train.py", "helper.py"])
    (repository / "helper.py").write_text("two\n")
    second = snapshot(repository, loaded=["helper.py"])

    assert (unused.dirty, unused.extra) == (False, ())
    assert (first.dirty, first.tree) == (True, git(repository, "rev-parse", "HEAD^{tree}"))
    assert first.untracked == ("helper.py",)
    assert [line.split(" ")[:2] for line in first.extra] == [["helper.py", "4"]]
    assert first.extra != second.extra


def test_a_loaded_file_that_git_ignores_does_not_count(repository):
    (repository / ".gitignore").write_text("generated*\n")
    commit_all(repository)
    (repository / "generated_pb2.py").write_text("one\n")

    assert snapshot(repository, loaded=["generated_pb2.py"]).dirty is False


def test_of_a_submodule_the_loaded_files_count_too(repository, tmp_path):
    make_repository(tmp_path / "library")
    git(repository, "submodule", "--quiet", "add", str(tmp_path / "library"), "library")
    commit_all(repository)
    (repository / "library" / "helper.py").write_text("one\n")

    unused = snapshot(repository, loaded=["library/train.py"])
    loaded = snapshot(repository, loaded=["library/helper.py"])

    assert (unused.dirty, unused.extra) == (False, ())
    assert [line.split(" ")[0] for line in loaded.extra] == ["library", "library/helper.py"]


def test_a_loaded_file_of_a_clone_inside_the_repository_counts(repository, tmp_path):
    git(tmp_path, "clone", "--quiet", str(repository), str(repository / "clone"))
    unused = snapshot(repository)

    loaded = snapshot(repository, loaded=["clone/train.py"])

    assert unused.dirty is False
    assert loaded.untracked == ("clone/train.py",)


def test_a_change_in_a_submodule_is_a_change(repository, tmp_path):
    make_repository(tmp_path / "library")
    git(repository, "submodule", "--quiet", "add", str(tmp_path / "library"), "library")
    commit_all(repository)
    clean = snapshot(repository)
    (repository / "library" / "train.py").write_text("lr = 0.2\n")
    edited = snapshot(repository)
    (repository / "library" / "train.py").write_text("lr = 0.3\n")
    edited_again = snapshot(repository)
    commit_all(repository / "library")
    moved = snapshot(repository)

    assert clean.dirty is False
    assert (edited.dirty, edited.tree) == (True, clean.tree)
    assert edited.extra != edited_again.extra
    assert (moved.dirty, moved.extra) == (True, ())
    assert moved.tree == committed_tree(repository)


def test_files_of_git_lfs_go_through_its_filter_and_are_not_modified_for_that(repository):
    git(repository, "config", "filter.lfs.clean", "sed s/large/pointer/")
    (repository / ".gitattributes").write_text("*.bin filter=lfs\n")
    (repository / "weights.bin").write_text("large\n")
    commit_all(repository)
    assert git(repository, "show", "HEAD:weights.bin") == "pointer"
    os.utime(repository / "weights.bin", (1, 1))

    assert snapshot(repository).dirty is False
