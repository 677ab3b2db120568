"""The loop of `examples/recipes/sam.py` in plain PyTorch, as its authors describe it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model, criterion = recipe.make_model(), nn.CrossEntropyLoss()
    data = Subset(recipe.make_data(), range(1500))
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.config.lr, momentum=0.9)
    for epoch in range(recipe.config.max_epochs):
        for image, digit in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            criterion(model(image), digit).backward()
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
            scale = recipe.config.radius / (norm + 1e-12)
            ways = [p.grad * scale for p in model.parameters()]
            with torch.no_grad():
                for parameter, way in zip(model.parameters(), ways, strict=True):
                    parameter.add_(way)
            optimizer.zero_grad()
            criterion(model(image), digit).backward()
            with torch.no_grad():
                for parameter, way in zip(model.parameters(), ways, strict=True):
                    parameter.sub_(way)
            optimizer.step()
    return weights_of(model)
