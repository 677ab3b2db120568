"""The loop of `examples/recipes/curriculum.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    data, model, criterion = recipe.make_data(), recipe.make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.config.lr)
    for epoch in range(recipe.config.max_epochs):
        for image, digit in batches(recipe.easiest(data, epoch), recipe.config, epoch):
            optimizer.zero_grad()
            criterion(model(image), digit).backward()
            optimizer.step()
    return weights_of(model)
