"""The workflows and templates of the repository, as far as they can be tried without a host."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import danling

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def steps(workflow: str) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    jobs = load(f".github/workflows/{workflow}.yml")["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def bash(script: str, *options: str, **variables: str) -> int:
    """Run a step of a workflow as its host would run it, and return the exit code."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", *options, "-c", script]
    return subprocess.run(command, cwd=Path.cwd(), env=variables, capture_output=True).returncode


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_yaml(path: str):
    assert load(path)


def test_ci_runs_on_the_systems_and_pythons_that_the_metadata_promises():
    matrix = load(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]

    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == pythons
    assert matrix["system"] == ["ubuntu-latest", "macos-latest"]


@pytest.mark.parametrize("workflow", ["ci", "release"])
def test_each_script_of_a_workflow_is_bash_and_names_what_exists(workflow: str):
    scripts = [step["run"] for step in steps(workflow) if "run" in step]

    words = {word for script in scripts for word in script.split()}
    files = {word for word in words if re.match(r"(\.ci|tests|examples)/", word)}
    extras = set(re.findall(r"\[([\w,]+)\]", " ".join(words)))
    known = PROJECT["optional-dependencies"].keys()
    assert ".ci/run" in files
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert {name for names in extras for name in names.split(",")} <= known
    assert [script for script in scripts if bash(script, "-n") != 0] == []


@pytest.mark.parametrize(
    ("tag", "heading", "code"),
    [
        (f"v{danling.__version__}", f"## {danling.__version__}", 0),
        (f"v{danling.__version__}", "## Unreleased", 1),
        ("v0.0.1", "## 0.0.1", 1),
    ],
)
def test_a_release_is_refused_unless_tag_version_and_changelog_agree(
    tag: str, heading: str, code: int, tmp_path: Path
):
    script = next(s["run"] for s in steps("release") if "GITHUB_REF_NAME" in s.get("run", ""))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    (tmp_path / "danling.py").write_text(f"__version__ = {danling.__version__!r}\n")

    assert bash(script, GITHUB_REF_NAME=tag, PATH=os.environ["PATH"]) == code
