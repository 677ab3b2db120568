"""What a run says about where it ran: enough to compare, and no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from danling.identity.environment import (
    environment_variables,
    installed_packages,
    launch_entry,
    read_environment,
)


def test_variables_are_taken_by_an_allow_list():
    variables = {
        "CUDA_VISIBLE_DEVICES": "0",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "HF_HOME": "/data",
        "TORCH_LOGS": "dynamo",
        "TOKENIZERS_PARALLELISM": "false",
        "WORLD_SIZE": "2",
        "HOME": "/root",
        "PATH": "/bin",
        "MY_SECRET": "x",
    }

    seen = environment_variables(variables)

    assert seen == {
        key: variables[key] for key in variables if key not in ("HOME", "PATH", "MY_SECRET")
    }


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HF_TOKEN_PATH", "SLURM_SPANK_SECRET", "TORCH_API_KEY", "NCCL_AUTH_X"]
)
def test_variables_with_secret_names_are_left_out(name):
    assert environment_variables({name: "value"}) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hf_" + "aB3" * 12, "***"),
        ("https://me:pw@proxy:80", "https://me:***@proxy:80"),
        ("dGhpc0lzQVJhbmRvbVNlY3JldEtleTEyMzQ1Njc4OTA=", "***"),
        ("expandable_segments:True", "expandable_segments:True"),
    ],
)
def test_values_that_look_like_keys_are_masked(value, expected):
    assert environment_variables({"CUDA_SOMETHING": value}) == {"CUDA_SOMETHING": expected}


def test_the_environment_is_json_even_with_bytes_that_are_no_characters(monkeypatch):
    monkeypatch.setitem(os.environ, "CUDA_\udcff", "\udcff")

    text = json.dumps(read_environment(), allow_nan=False)

    assert json.loads(text)["python"] == ".".join(map(str, sys.version_info[:3]))


def test_versions_are_read_without_importing_anything():
    script = "import sys, json; from danling.identity.environment import read_environment\n"
    script += "versions = read_environment()['versions']\n"
    script += "print(json.dumps([versions, sorted({'torch', 'accelerate'} & set(sys.modules))]))"

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    versions, imported = json.loads(done.stdout)
    assert imported == []
    assert versions["torch"].startswith("2.")
    assert versions["accelerate"]


def test_installed_packages_are_those_of_python_itself():
    """Their metadata are not parsed as a whole, which took longer than the first epoch."""
    expected: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:
            expected.setdefault(name.lower().replace("_", "-"), distribution.version)

    assert installed_packages() == expected


@pytest.mark.parametrize(
    "text",
    [
        "Metadata-Version: 2.1\nName: the_package\nVersion: 1.2\nSummary: x\n",
        "Author: A\n and B\n\tand Name: C\nVersion: 1.2\nName: the_package\n\nVersion: 3\n",
        "Name:the_package\nVersion:1.2\nName: other",
    ],
)
def test_a_package_is_found_by_its_headers(text, tmp_path, monkeypatch):
    (tmp_path / "the_package-1.2.dist-info").mkdir()
    (tmp_path / "the_package-1.2.dist-info" / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert installed_packages() == {"the-package": "1.2"}


def test_installed_packages_have_normalised_names_in_order():
    packages = installed_packages()

    assert list(packages) == sorted(packages)
    assert packages["gitpython"]


def test_a_package_that_was_installed_meanwhile_is_listed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "later" not in installed_packages()

    (tmp_path / "later-1.0.dist-info").mkdir()
    (tmp_path / "later-1.0.dist-info" / "METADATA").write_text("Name: Later\nVersion: 1.0\n")

    assert installed_packages()["later"] == "1.0"


def test_a_launch_names_its_process_command_line_and_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--token", "secret"])

    entry = launch_entry()

    assert entry["argv"] == ["python", "train.py", "--token", "***"]
    assert (entry["pid"], entry["parent_pid"]) == (os.getpid(), os.getppid())
    assert entry["cwd"] == str(tmp_path)
    assert entry["slurm"] == {"SLURM_JOB_ID": "17"}
    assert entry["torchelastic"] == {"TORCHELASTIC_RUN_ID": "abc"}
    assert entry["world_size"] == 4
