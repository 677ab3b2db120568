"""The loop of `examples/recipes/lora.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, data = recipe.make_model(), recipe.make_data()
    optimizer = recipe.make_optimizer(model)
    model.train()
    for epoch in range(recipe.config.max_epochs):
        for batch in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return weights_of(model)
