"""What is code of a run and what is not, in git, without it and in a notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from danling.identity.code import Code, read_code, uncounted_files
from danling.identity.ids import experiment_uuid
from tests.identity.test_git import fake_git
from tests.support.repositories import commit_all, git, make_repository, read_code_elsewhere


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def test_a_commit_changes_the_id_and_ignored_files_do_not(repository):
    (repository / ".gitignore").write_text("*.log\n")
    before = experiment_uuid(read_code(repository))
    commit_all(repository)
    after = experiment_uuid(read_code(repository))
    (repository / "run.log").write_text("ignored")

    assert before != after
    assert experiment_uuid(read_code(repository)) == after


def test_output_in_project_root_does_not_change_the_id_even_through_a_link(repository, tmp_path):
    (tmp_path / "scratch").mkdir()
    (repository / "experiments").symlink_to(tmp_path / "scratch")

    code = read_code(repository, exclude=[repository / "experiments"])

    assert code.dirty is False


def test_a_project_root_around_the_script_hides_no_code(repository):
    package = repository / "package"
    (package / "inner").mkdir()
    (package / "model.py").write_text("layers = 3\n")

    assert read_code(repository, exclude=[repository]).dirty is True
    assert read_code(package, exclude=[package]).dirty is True
    assert read_code(package / "inner", exclude=[package]).dirty is True


@pytest.mark.parametrize("damage", ["garbage HEAD", "zeroed objects", "corrupt index", "no HEAD"])
def test_a_broken_repository_is_as_good_as_none(repository, damage):
    (repository / "train.py").write_text("lr = 0.2\n")
    if damage == "garbage HEAD":
        (repository / ".git" / "HEAD").write_bytes(b"\x00\xffgarbage")
    elif damage == "no HEAD":
        (repository / ".git" / "HEAD").unlink()
    elif damage == "corrupt index":
        (repository / ".git" / "index").write_bytes(b"garbage")
    else:
        for path in (repository / ".git" / "objects").rglob("??????*"):
            if path.is_file():
                path.chmod(0o644)
                path.write_bytes(bytes(path.stat().st_size))

    code = read_code(repository)

    assert (code.source, code.partial, code.dirty) == ("files", False, None)
    assert code.note


def test_a_bare_repository_has_no_working_tree(tmp_path):
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")

    assert read_code(tmp_path / "bare.git").source == "files"


def test_outside_a_repository_the_script_and_its_imported_modules_are_the_code(tmp_path):
    first = run_script(make_project(tmp_path / "first"))
    copy = run_script(make_project(tmp_path / "second"))
    edited = make_project(tmp_path / "third")
    (edited / "package" / "model.py").write_text("layers = 3\n")
    unused = make_project(tmp_path / "fourth")
    (unused / "notes.py").write_text("never imported\n")

    names = [line.split(" ")[0] for line in first["extra"]]
    assert names == ["package/__init__.py", "package/model.py", "train.py"]
    assert (first["source"], first["commit"], first["dirty"]) == ("files", None, None)
    assert copy["experiment_id"] == first["experiment_id"]
    assert run_script(edited)["experiment_id"] != first["experiment_id"]
    assert run_script(unused)["experiment_id"] == first["experiment_id"]


def test_outside_a_repository_a_package_that_is_run_counts_from_its_root(tmp_path):
    project = make_project(tmp_path / "project")
    shutil.move(project / "train.py", project / "package" / "train.py")

    code = run_script(project, "-m", "package.train")

    names = [line.split(" ")[0] for line in code["extra"]]
    assert names == ["package/__init__.py", "package/model.py", "package/train.py"]


def test_an_interactive_session_outside_a_repository_has_an_id(tmp_path):
    code = read_code_elsewhere(tmp_path)

    assert (code["source"], code["extra"], code["partial"]) == ("files", [], False)


def make_project(folder: Path) -> Path:
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "model.py").write_text("layers = 2\n")
    (folder / "train.py").write_text(
        "import dataclasses, json, package.model\n"
        "from pathlib import Path\n"
        "from danling.identity import experiment_uuid, read_code\n"
        "code = read_code(Path(__file__).parent)\n"
        "answer = {'experiment_id': experiment_uuid(code).hex}\n"
        "print(json.dumps(dataclasses.asdict(code) | answer))\n"
    )
    return folder


def run_script(folder: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *(command or ("train.py",))],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.benchmark
@pytest.mark.parametrize("dirty", [False, True])
def test_the_identity_of_a_repository_of_300_files_takes_less_than_150_ms(tmp_path, dirty):
    folder = make_repository(tmp_path / "large")
    for index in range(300):
        (folder / f"module_{index}.py").write_text("line\n" * 300)
    commit_all(folder)
    if dirty:
        (folder / "module_0.py").write_text("edited\n")

    seconds = min(read_code_elsewhere(folder)["seconds"] for _ in range(3))

    assert seconds < 0.15
