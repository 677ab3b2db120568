"""The loop of `examples/recipes/k_fold.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    data, models = recipe.make_data(), {}
    for number, (fold, val) in enumerate(recipe.split(data)):
        torch.manual_seed(recipe.config.seed)
        models[f"{number}"] = model = recipe.make_model()
        criterion, scores = nn.CrossEntropyLoss(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.config.lr)
        for epoch in range(recipe.config.max_epochs):
            model.train()
            for image, digit in batches(Subset(data, fold), recipe.config, epoch):
                optimizer.zero_grad()
                criterion(model(image), digit).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                images, digits = data[val]
                scores.append(recipe.accuracy(model(images), digits).item())
        assert abs(max(scores) - recipe.scores[number]) < 1e-6
    return weights_of(models)
