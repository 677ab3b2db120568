"""A recipe that dies by SIGKILL in the middle of an epoch ends as one that nobody disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.recipes import NEEDS, PROCESSES, RECIPES, ends, run_in_process, short

BY_DEFAULT = ("gan",)
KILL_AT = {"fixmatch": 30, "gan": 15, "lbfgs": 2, "token_weights": 3}
"""The step of the process at which a recipe dies, in its second epoch; that of most is 8."""

FEW_BATCHES = ["--limit_batches.train", "6"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in BY_DEFAULT else pytest.mark.exhaustive)
        for name in RECIPES
    ],
)
def test_a_recipe_goes_on_exactly_after_a_sigkill(name: str, tmp_path: Path):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    few = [*short(name), *FEW_BATCHES]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    undisturbed = run_in_process(name, whole, *few)
    died = run_in_process(name, killed, *few, kill_at=KILL_AT.get(name, 8))
    cut = ends(killed)
    went_on = run_in_process(name, killed, *few)

    assert undisturbed.returncode == 0, undisturbed.stderr
    assert died.returncode == (1 if name in PROCESSES else -signal.SIGKILL), died.stderr
    assert went_on.returncode == 0, went_on.stderr
    assert cut != ends(whole)
    assert ends(killed) == ends(whole)
    assert directories(killed) == directories(whole)  # it went on, and did not begin anew


def directories(folder: Path) -> list[str]:
    """The names of the runs of a folder, without their ids."""
    return sorted(path.parent.name.rsplit("-", 3)[0] for path in folder.glob("experiments/*/.lock"))
