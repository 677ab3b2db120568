"""The loop of `examples/recipes/lbfgs.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, criterion = nn.Linear(30, 2), nn.CrossEntropyLoss()
    optimizer = recipe.make_optimizer(model)
    data = recipe.make_data()

    for epoch in range(recipe.config.max_epochs):
        for features, labels in batches(data, recipe.config, epoch):

            def closure(features: Tensor = features, labels: Tensor = labels) -> Tensor:
                optimizer.zero_grad()
                loss: Tensor = criterion(model(features), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
    return weights_of(model)
