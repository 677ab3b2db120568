"""A recipe is its plain PyTorch loop: bit for bit at equal order and seed, else for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.recipes import NEEDS, RECIPES, plain, run_here, run_in_process, short, trained


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_equals_its_plain_loop(name: str, monkeypatch: pytest.MonkeyPatch):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)

    recipe = run_here(name, monkeypatch, *short(name), "--accelerate.cpu", "true")
    expected = plain(name).train(recipe)

    tolerance = getattr(plain(name), "TOLERANCE", 0)
    found = trained(recipe)
    assert list(found) == list(expected)
    assert found
    for key, weight in found.items():
        if tolerance:
            torch.testing.assert_close(weight, expected[key], rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(weight, expected[key]), key


@pytest.mark.distributed
def test_negatives_of_two_processes_are_those_of_one_large_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finished = run_in_process("clip", tmp_path / "two", *short("clip"))
    recipe = run_here("clip", monkeypatch, *short("clip"), "--accelerate.cpu", "true")
    expected = plain("clip").train(recipe, processes=2)

    assert finished.returncode == 0, finished.stderr
    (path,) = tmp_path.glob("two/experiments/*/checkpoints/latest.pth")
    found = torch.load(path, weights_only=True)["model"]
    torch.testing.assert_close(found, dict(expected), rtol=1e-6, atol=1e-6)
