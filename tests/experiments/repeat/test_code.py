from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import danling as dl
from danling.errors import RunError
from danling.experiments import Run
from danling.experiments.repeat.code import (
    code_problem,
    find_repository,
    has_changed,
    rebuild,
    script_in,
)
from danling.identity.worktree import WorkingTree
from tests.support.runs import make_run
from tests.support.week import copy_week

TRAIN = """\
import helper
import danling as dl
from danling.testing import TinyRunner

TinyRunner({"max_epochs": 1}, default_callbacks=True).train()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "project"
    folder.mkdir()
    (folder / "train.py").write_text("first = True\n")
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "helper.py").write_text("width = 1\n")
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A repository with an edit and an untracked module, and a run of them."""
    return copy_week(made, tmp_path / "project")


def run_of(project: Path) -> Run:
    (run,) = dl.runs(project)
    return run


def test_edits_and_untracked_modules_are_rebuilt_and_used_again(project: Path):
    run = run_of(project)
    folder = project / "experiments" / ".danling" / "code"

    first = rebuild(run, folder)

    assert first.exact
    assert first.notes == ()
    assert (first.path / "train.py").read_text() == TRAIN
    assert (first.path / "helper.py").read_text() == "width = 1\n"
    status = ["git", "status", "--porcelain"]
    outside = subprocess.run(status, cwd=project, capture_output=True, text=True).stdout
    assert outside.split() == ["M", "train.py", "??", "helper.py"]
    before = (first.path / "train.py").stat().st_ino
    assert (rebuild(run, folder).path / "train.py").stat().st_ino == before
    (first.path / "helper.py").write_text("width = 2\n")  # not its code any more
    assert rebuild(run, folder).exact
    assert (first.path / "helper.py").read_text() == "width = 1\n"


@pytest.mark.parametrize("name", ["train.py", "helper.py"])
def test_an_edit_of_tracked_and_untracked_code_is_a_change(project: Path, name: str):
    run, root = run_of(project), project / "experiments"
    assert not has_changed(run, root)
    (project / "notes.txt").write_text("no code\n")
    assert not has_changed(run, root)

    (project / name).write_text("edited = True\n")

    assert has_changed(run, root)


def test_a_patch_that_was_changed_is_a_problem(project: Path):
    run = run_of(project)
    patch = run.path / "metadata" / "code.patch"
    with WorkingTree.of(find_repository(run)) as tree:
        assert code_problem(tree, run) is None

    for old, new, named in (("width = 1", "width = 2", "helper.py"), ("epochs", "steps", "code")):
        content = patch.read_text()
        patch.write_text(content.replace(old, new))
        with WorkingTree.of(find_repository(run)) as tree:
            assert f"the recorded {named}" in str(code_problem(tree, run))
        patch.write_text(content)


def test_a_commit_that_is_nowhere_is_an_error(tmp_path: Path):
    run = Run(make_run(tmp_path))

    with pytest.raises(RunError, match="no repository here has the commit 000000000000"):
        find_repository(run)


def test_a_script_is_found_by_the_end_of_its_path(tmp_path: Path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("")

    assert script_in(tmp_path, "train.py", "/home/me/src") == tmp_path / "src" / "train.py"
    assert script_in(tmp_path, "/old/src/train.py", None) == tmp_path / "src" / "train.py"
    assert script_in(tmp_path, "other.py", "/home/me/src") is None
