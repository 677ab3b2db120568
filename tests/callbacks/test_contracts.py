"""Every ready-made callback is tested against the contract."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import danling.callbacks

TESTS = Path(__file__).resolve().parent


def made_in(path: Path) -> set[str]:
    """The names in the `make` of the classes of a file that inherit the contract."""
    kinds = {"CallbackContract"}
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        if kinds & {base.id for base in node.bases if isinstance(base, ast.Name)}:
            kinds.add(node.name)
            makes = [each for each in node.body if getattr(each, "name", "") == "make"]
            found = [each for make in makes for each in ast.walk(make)]
            names |= {each.id for each in found if isinstance(each, ast.Name)}
    return names


MADE = {name for path in TESTS.glob("test_*.py") for name in made_in(path)}


@pytest.mark.parametrize("name", danling.callbacks.__all__)
def test_every_ready_made_callback_keeps_to_the_contract(name: str):
    assert name in MADE, f"add a class TestContract(CallbackContract) that makes {name}"
