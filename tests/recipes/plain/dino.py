"""The loop of `examples/recipes/dino.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    models = recipe.make_models()
    data = recipe.make_data()
    optimizer = torch.optim.AdamW(models["student"].parameters(), lr=1e-3)
    for epoch in range(recipe.config.max_epochs):
        for (image,) in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            recipe.loss_of(models, image).backward()
            optimizer.step()
            recipe.follow(models["student"], models["teacher"])
    return weights_of(models)
