"""The loop of `examples/recipes/maml.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model = recipe.make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.config.lr)
    for _ in range(recipe.config.max_steps):
        optimizer.zero_grad()
        recipe.loss_of(model, torch.device("cpu")).backward()
        optimizer.step()
    return weights_of(model)
