"""The loop of `examples/recipes/detection.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, data = recipe.make_model(), recipe.make_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.config.lr)
    for epoch in range(recipe.config.max_epochs):
        for images, targets in batches(data, recipe.config, epoch, collate_fn=recipe.as_lists):
            optimizer.zero_grad()
            recipe.losses_of(model, images, targets)["loss"].backward()
            optimizer.step()
    return weights_of(model)
