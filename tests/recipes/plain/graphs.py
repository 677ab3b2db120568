"""The loop of `examples/recipes/graphs.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, data = recipe.Network(), recipe.make_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(recipe.config.max_epochs):
        for batch in batches(data, recipe.config, epoch, collate_fn=recipe.join):
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()
    return weights_of(model)
