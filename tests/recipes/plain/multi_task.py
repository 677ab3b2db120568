"""The loop of `examples/recipes/multi_task.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, criterion, data = recipe.Network(), recipe.Uncertainty(), recipe.make_data()
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=recipe.config.lr)
    for epoch in range(recipe.config.max_epochs):
        for batch in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            recipe.losses_of(model, criterion, *batch)["loss"].backward()
            optimizer.step()
    return weights_of({"model": model, "criterion": criterion})
