from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from danling.errors import RunError
from danling.experiments.sweeps.snapshot import snapshot


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text("import model\n")
    (folder / "model.py").write_text("width = 1\n")
    (folder / "data.bin").write_bytes(bytes(3 << 20))
    return folder


def commit(project: Path) -> None:
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=project, check=True)


@pytest.mark.parametrize("in_git", [True, False])
def test_later_edits_do_not_reach_the_copy(project: Path, in_git: bool):
    if in_git:
        commit(project)
    root = project / "experiments"

    copy = snapshot(project / "train.py", root, root / "code")
    (project / "model.py").write_text("width = 2\n")

    assert copy.read_text() == "import model\n"
    assert copy.with_name("model.py").read_text() == "width = 1\n"
    assert not copy.with_name("data.bin").exists()
    assert not list(copy.parent.glob("experiments"))
    again = snapshot(project / "train.py", root, root / "code")
    assert again != copy
    assert again.with_name("model.py").read_text() == "width = 2\n"
    (project / "model.py").write_text("width = 1\n")
    assert snapshot(project / "train.py", root, root / "code") == copy


def test_uncommitted_changes_and_deletions_are_in_it(project: Path):
    commit(project)
    subprocess.run(["git", "add", "model.py"], cwd=project, check=True)
    subprocess.run(["git", "commit", "-qm", "second"], cwd=project, check=True)
    (project / "train.py").write_text("edited = True\n")
    (project / "model.py").unlink()
    root = project / "experiments"

    copy = snapshot(project / "train.py", root, root / "code")

    assert copy.read_text() == "edited = True\n"
    assert not copy.with_name("model.py").exists()


def test_a_missing_script_is_an_error(tmp_path: Path):
    with pytest.raises(RunError, match="there is no script"):
        snapshot(tmp_path / "none.py", tmp_path / "experiments", tmp_path / "code")
