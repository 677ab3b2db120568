"""The loop of `examples/recipes/fixmatch.py` in plain PyTorch."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from danling.data.limits import PASS
from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    config = recipe.config
    torch.manual_seed(config.seed)
    model, data = recipe.make_model(), recipe.make_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    for epoch in range(recipe.config.max_epochs):
        labelled = (
            batch
            for number in count()
            for batch in batches(data["labelled"], config, epoch + number * PASS, "labelled")
        )
        for unlabelled in batches(data["unlabelled"], config, epoch, "unlabelled"):
            optimizer.zero_grad()
            batch = {"labelled": next(labelled), "unlabelled": unlabelled}
            recipe.loss_of(model, batch).backward()
            optimizer.step()
    return weights_of(model)
