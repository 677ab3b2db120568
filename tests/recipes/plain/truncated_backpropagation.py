"""The loop of `examples/recipes/truncated_backpropagation.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.support.recipes import Weights, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    model = recipe.Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(recipe.config.max_epochs):
        model.hidden.zero_()
        for letters, following in recipe.make_batches():
            optimizer.zero_grad()
            cross_entropy(model(letters), following).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.config.max_grad_norm)
            optimizer.step()
    return weights_of(model)
