"""The same code and configuration have the same ids everywhere, and other ones have others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from danling.errors import ConfigError
from danling.identity.code import Code, read_code
from danling.identity.ids import experiment_uuid, run_identifier, run_name, run_uuid
from tests.support.repositories import commit_all, git, make_repository, read_code_elsewhere

COMMIT = "89abcdef" * 5
CLEAN = Code(commit=COMMIT, branch="main", tree="01234567" * 5, dirty=False, source="git")
SEMANTIC = {"lr": 0.001, "seed": 0, "optim": {"betas": [0.9, 0.99], "name": "adam"}, "épochs": 3}


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def test_the_ids_of_a_known_code_and_configuration_are_these():
    """Golden: a change of any of them breaks the resume of every run on every disk."""
    dirty = replace(CLEAN, dirty=True, extra=("data.bin 4 00",))
    files = Code(tree="ab" * 32, extra=("train.py 3 00",))
    experiment = experiment_uuid(CLEAN)

    assert experiment == UUID("f1ffe614-4ea1-5a32-9936-6d8433b65d52")
    assert experiment_uuid(dirty) == UUID("b2c820d7-3d4a-569b-a6c4-ca27786de8de")
    assert experiment_uuid(files) == UUID("385cd3cd-7831-5880-8b44-e3f230485b3f")
    assert run_uuid(experiment, SEMANTIC) == UUID("612f95e3-94e7-5f00-bc6e-41838f8dd95c")


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_the_run_id_is_the_same_in_every_process_and_for_every_order_of_keys(hash_seed):
    script = "import json, sys; from uuid import UUID; from danling.identity.ids import run_uuid\n"
    script += "print(run_uuid(UUID(int=7), json.loads(sys.argv[1])))"
    reordered = {key: SEMANTIC[key] for key in reversed(SEMANTIC)}
    reordered["optim"] = {"name": "adam", "betas": [0.9, 0.99]}

    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(reordered)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )

    assert done.stdout.strip() == str(run_uuid(UUID(int=7), SEMANTIC))


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"seed": None}, {"optim": {"name": "adam"}}, {"extra": 1}]
)
def test_a_change_of_the_configuration_changes_the_run_id(change):
    assert run_uuid(UUID(int=7), SEMANTIC | change) != run_uuid(UUID(int=7), SEMANTIC)


def test_another_clone_at_another_path_has_the_same_id_clean_and_dirty(repository, tmp_path):
    clone = tmp_path / "somewhere" / "else"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    clean = [experiment_uuid(read_code(folder)) for folder in (repository, clone)]
    for folder in (repository, clone):
        (folder / "new.py").write_text("new\n")
        (folder / "data.bin").write_bytes(bytes(2 << 20))
    dirty = [experiment_uuid(read_code(folder)) for folder in (repository, clone)]

    assert clean[0] == clean[1]
    assert dirty[0] == dirty[1]
    assert clean[0] != dirty[0]


def test_the_branch_and_the_folder_of_the_script_do_not_change_the_id(repository):
    before = experiment_uuid(read_code(repository))
    git(repository, "checkout", "--quiet", "-b", "other")

    assert experiment_uuid(read_code(repository / "package")) == before


def test_every_edit_of_an_untracked_file_changes_the_id(repository):
    ids = [experiment_uuid(read_code(repository))]
    for content in ("one", "two", "six"):
        (repository / "untracked.py").write_text(content)
        ids.append(experiment_uuid(read_code(repository)))
    (repository / "untracked.py").unlink()

    assert len(set(ids)) == 4
    assert experiment_uuid(read_code(repository)) == ids[0]


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


def test_a_slow_disk_marks_the_id_partial_and_the_commit_is_kept(repository):
    with open(repository / "huge.bin", "wb") as file:
        file.truncate(64 << 30)  # a hole: it takes no space, and minutes to read

    begin = time.monotonic()
    code = read_code(repository, timeout=0.5)

    assert (code.partial, code.commit) == (True, git(repository, "rev-parse", "HEAD"))
    assert time.monotonic() - begin < 1.5
    assert code.note == "reading huge.bin took too long"


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
        "from danling.identity.code import read_code\n"
        "from danling.identity.ids import experiment_uuid\n"
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


def test_the_short_id_has_eight_digits_of_each():
    identifier = run_identifier("0" * 32, "1" * 32, "2" * 32)

    assert identifier == "00000000-11111111-22222222"


@pytest.mark.parametrize("name", ["mlp", "lr=1e-3, bs=4", "学习", "🎉", "שלום", "a.b", "x" * 190])
def test_ordinary_names_are_taken_as_they_are(name, tmp_path):
    joined = run_name("digits", name)
    (tmp_path / joined).mkdir()

    assert joined == f"digits-{name}"
    assert [path.name for path in tmp_path.iterdir()] == [joined]


def test_composed_and_decomposed_letters_are_one_name():
    assert run_name("caf\u0065\u0301", "x") == run_name("caf\u00e9", "x") == "caf\u00e9-x"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "it is empty"),
        ("a/b", "it contains '/'"),
        ("/abs", "it contains '/'"),
        ("../../x", "it contains '/'"),
        ("..", "it starts with '.'"),
        (".hidden", "it starts with '.'"),
        ("-rf", "it starts with '-'"),
        (" x", "it starts with ' '"),
        ("x.", "it ends with '.'"),
        ("x ", "it ends with ' '"),
        ("a\\b", r"it contains '\\\\'"),
        ("a\0b", r"it contains '\\x00'"),
        ("a\nb", r"it contains '\\n'"),
        ("a\u2028b", r"it contains '\\u2028'"),
        ("a\ud800b", r"it contains '\\ud800'"),
        ("a:b*", r"it contains '\*', ':'"),
        ("con", "Windows reserves it"),
        ("NUL.txt", "Windows reserves it"),
        ("com1", "Windows reserves it"),
    ],
)
@pytest.mark.parametrize("key", ["experiment_name", "run_name"])
def test_a_name_that_cannot_be_part_of_a_folder_is_refused_with_the_rule(key, name, rule):
    names = {"experiment_name": "digits", "run_name": "mlp"} | {key: name}

    with pytest.raises(ConfigError, match=rule) as caught:
        run_name(**names)

    assert str(caught.value).startswith(f"{key}={name!r} ")


def test_names_that_are_too_long_are_refused_with_the_limit():
    with pytest.raises(ConfigError, match="are 201 bytes long, and 200 are allowed"):
        run_name("digits", "x" * 194)


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
