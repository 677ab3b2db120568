"""The loop of `examples/recipes/gan.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    models = recipe.make_models()
    data = recipe.make_data()
    optimizers = {name: recipe.make_optimizer(model) for name, model in models.items()}
    for epoch in range(recipe.config.max_epochs):
        for (real,) in batches(data, recipe.config, epoch):
            optimizers["critic"].zero_grad()
            recipe.critic_loss(**models, real=real).backward()
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            recipe.generator_loss(**models, real=real).backward()
            optimizers["generator"].step()
    return weights_of(models)
