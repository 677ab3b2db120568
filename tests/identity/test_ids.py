"""The same code and configuration have the same ids everywhere, and other ones have others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from uuid import UUID

import pytest

from danling.errors import ConfigError
from danling.identity.code import Code, read_code
from danling.identity.ids import experiment_uuid, run_identifier, run_name, run_uuid
from tests.support.repositories import git, make_repository

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
        (folder / "train.py").write_text("lr = 0.3\n")
    dirty = [experiment_uuid(read_code(folder)) for folder in (repository, clone)]

    assert clean[0] == clean[1]
    assert dirty[0] == dirty[1]
    assert clean[0] != dirty[0]


def test_the_branch_and_the_folder_of_the_script_do_not_change_the_id(repository):
    before = experiment_uuid(read_code(repository))
    git(repository, "checkout", "--quiet", "-b", "other")

    assert experiment_uuid(read_code(repository / "package")) == before


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
