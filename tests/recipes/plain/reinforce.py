"""The loop of `examples/recipes/reinforce.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    policy = recipe.make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=recipe.config.lr)
    for _ in range(recipe.config.max_steps):
        optimizer.zero_grad()
        recipe.walk(policy, torch.device("cpu"))["loss"].backward()
        optimizer.step()
    return weights_of(policy)
