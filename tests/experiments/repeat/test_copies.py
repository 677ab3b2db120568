from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import danling as dl
from danling.experiments.repeat.copies import unused_copies
from tests.support.runs import RECORD, make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of runs with three copies of code, in each of which a run was started."""
    (tmp_path / "train.py").write_text("")
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    root = tmp_path / "experiments"
    for number, (name, status) in enumerate(
        [("one", "finished"), ("two", "preempted"), ("three", "finished")], 1
    ):
        copy = root / ".danling" / "code" / name
        add = ["git", "worktree", "add", "--detach", str(copy)]
        subprocess.run(add, cwd=tmp_path, check=True, capture_output=True)
        launch = {
            **RECORD["launches"][0],
            "argv": ["python", str(copy / "train.py")],
            "cwd": str(tmp_path),
        }
        make_run(root, number, status=status, launches=[launch], run_id=f"{number:032x}")
    return root


def unused(root: Path) -> list[str]:
    return sorted(copy.path.name for copy in unused_copies(root, dl.runs(root)))


def test_a_run_that_has_not_ended_well_needs_its_code(root: Path):
    assert unused(root) == ["one", "three"]


@pytest.mark.parametrize(("count", "expected"), [(1, ["one", "three"]), (2, ["one"])])
def test_a_sweep_with_something_left_to_do_needs_its_code(
    root: Path, count: int, expected: list[str]
):
    folder = root / ".danling" / "sweeps" / "abc"
    folder.mkdir(parents=True)
    state = {"schema": 1, "script": ".danling/code/three/train.py", "jobs": [[]] * count}
    (folder / "sweep.json").write_text(json.dumps(state))

    assert unused(root) == expected


def test_a_worktree_leaves_nothing_behind_in_its_repository(root: Path):
    copies = unused_copies(root, dl.runs(root))
    assert copies
    assert all(copy.size > 0 for copy in copies)

    for copy in copies:
        copy.remove()

    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=root.parent, capture_output=True, text=True
    ).stdout
    assert [line.split()[0].rpartition("/")[2] for line in listed.splitlines()[1:]] == ["two"]
    assert unused(root) == []


def test_a_plain_copy_is_removed_too(root: Path):
    copy = root / ".danling" / "code" / "sweep-123"
    copy.mkdir()
    (copy / "train.py").write_text("x = 1\n")

    (found,) = [each for each in unused_copies(root, dl.runs(root)) if each.path.name == copy.name]
    found.remove()

    assert not copy.exists()


def test_without_copies_there_is_nothing(tmp_path: Path):
    make_run(tmp_path)

    assert unused_copies(tmp_path, dl.runs(tmp_path)) == []
