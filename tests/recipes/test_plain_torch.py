"""A recipe is its plain PyTorch loop: bit for bit at equal order and seed, else for a reason."""

from __future__ import annotations

import pytest
import torch

from tests.support.recipes import NEEDS, PROCESSES, RECIPES, plain, run_here, short, weights_of


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in PROCESSES])
def test_a_recipe_equals_its_plain_loop(name: str, monkeypatch: pytest.MonkeyPatch):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)

    recipe = run_here(name, monkeypatch, *short(name), "--accelerate.cpu", "true")
    expected = plain(name).train(recipe)

    tolerance = getattr(plain(name), "TOLERANCE", 0)
    found = weights_of(recipe.runner.unwrapped_model)
    assert list(found) == list(expected)
    assert found
    for key, weight in found.items():
        if tolerance:
            torch.testing.assert_close(weight, expected[key], rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(weight, expected[key]), key
