"""The command that plants faults plants real ones, and can tell whether the tests catch them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation import Fault, Tree, faults, modules, suite_of
from tests.support.environments import ROOT

SOURCE = '''\
"""Größe: the bytes of a line are not its letters."""

def first(values: list[int], below: int = 3, strict: bool = True) -> int | None:
    größe = len(values)
    if not values or größe <= 2:
        raise ValueError(f"wants {3 + 1} values")
    for value in values:
        print(value, below)
        if value < below and strict:
            return max(value, 0)
    return None
'''


def test_a_module_has_these_faults_and_no_others():
    found = [(fault.kind, fault.before, fault.after) for fault in faults(SOURCE.encode())]

    assert sorted(found) == sorted(
        [
            ("constant", "3", "4"),
            ("constant", "True", "False"),
            ("and, or", "not values or größe <= 2", "(not values and größe <= 2)"),
            ("dropped not", "not values", "(values)"),
            ("comparison", "größe <= 2", "(größe < 2)"),
            ("constant", "2", "3"),
            ("removed statement", 'raise ValueError(f"wants {3 + 1} values")', "pass"),
            ("removed statement", "print(value, below)", "pass"),
            ("swapped arguments", "print(value, below)", "(print(below, value))"),
            ("and, or", "value < below and strict", "(value < below or strict)"),
            ("comparison", "value < below", "(value <= below)"),
            ("returned nothing", "return max(value, 0)", "return None"),
            ("other function", "max", "min"),
            ("swapped arguments", "max(value, 0)", "(max(0, value))"),
            ("constant", "0", "1"),
        ]
    )


def test_a_planted_fault_changes_its_place_alone():
    (fault,) = (fault for fault in faults(SOURCE.encode()) if fault.before == "größe <= 2")

    planted = fault.planted(SOURCE.encode()).decode()

    assert planted == SOURCE.replace("größe <= 2", "(größe < 2)")


def test_every_module_has_tests():
    everything = modules(ROOT, [], None)

    assert len(everything) > 100
    assert [module for module in everything if not suite_of(ROOT, module)] == []


def test_modules_are_chosen_by_folder_and_by_file():
    chosen = modules(ROOT, ["danling/files", "callbacks/tracker.py"], None)

    assert set(chosen) == {
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "danling/files").glob("*.py")),
        "callbacks/tracker.py",
    }


@pytest.mark.parametrize(("after", "survives"), [("return None", False), (None, True)])
def test_a_fault_is_caught_and_no_fault_survives(after: str | None, survives: bool, tmp_path: Path):
    module = "danling/triggers.py"
    source = (ROOT / module).read_bytes()
    fault = next(fault for fault in faults(source) if fault.kind == "returned nothing")
    planted = Fault("", 1, fault.start, fault.end, "", after or fault.before)
    tree = Tree(tmp_path)

    assert tree.survives(module, planted, suite_of(ROOT, module), 200) is survives
    assert (tree.root / module).read_bytes() == source
