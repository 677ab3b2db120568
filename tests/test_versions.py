from __future__ import annotations

import tomllib

import pytest

from tests.versions import ROOT, constraints, name_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {name_of(line) for line in PROJECT["dependencies"]}


def test_the_lowest_versions_are_the_bounds_of_the_dependencies():
    lowest = {name_of(line): line for line in constraints("lowest")}

    assert {"torch", "accelerate", "tensorboard"} <= OWN <= lowest.keys()
    assert [lowest[name] for name in ("torch", "pyyaml")] == ["torch==2.6", "pyyaml==6.0.1"]


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_the_tools_are_those_of_the_constraints(which: str):
    found = {name_of(line): line for line in constraints(which)}
    pinned = {name_of(line): line for line in constraints("pinned")}

    assert [found[tool] for tool in ("pytest", "mypy")] == [pinned["pytest"], pinned["mypy"]]
    assert found.keys() & OWN == (OWN if which == "lowest" else set())
    assert "sympy" not in found  # torch says which
