"""The loop of `examples/recipes/token_weights.py` in plain PyTorch: one large batch for a window.

It is equal to 1e-6 only: sums over a batch are taken in another order than over its four parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tests.support.recipes import Weights, batches, weights_of

TOLERANCE = 1e-6


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, data = recipe.Model(), recipe.make_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.config.lr)
    for epoch in range(recipe.config.max_epochs):
        for batch in batches(data, recipe.config, epoch, collate_fn=recipe.pad, times=4):
            optimizer.zero_grad()
            cross_entropy(model(batch[:, :-1]), batch[:, 1:]).backward()
            optimizer.step()
    return weights_of(model)
