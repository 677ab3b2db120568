"""The loop of `examples/recipes/clip.py` in plain PyTorch: one process with the batch of all.

On one process it is equal bit for bit. On two it is equal to 1e-6 only: the gradients of a batch
are sums over its halves.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any, processes: int = 1) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, data = recipe.Encoders(), recipe.make_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.config.lr)
    for epoch in range(recipe.config.max_epochs):
        for upper, lower in batches(data, recipe.config, epoch, times=processes):
            optimizer.zero_grad()
            recipe.contrast(*model(upper, lower)).backward()
            optimizer.step()
    return weights_of(model)
