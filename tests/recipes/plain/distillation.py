"""The loops of `examples/recipes/distillation.py` in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.recipes import Weights, batches, weights_of


def train(recipe: Any) -> Weights:
    torch.manual_seed(recipe.config.seed)
    teacher, data, criterion = recipe.make_model(256), recipe.make_data(), nn.CrossEntropyLoss()
    torch.manual_seed(recipe.config.seed)
    optimizer = recipe.make_optimizer(teacher)
    for epoch in range(recipe.config.max_epochs):
        for image, digit in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            criterion(teacher(image), digit).backward()
            optimizer.step()
    teacher.eval().requires_grad_(False)
    torch.manual_seed(recipe.config.seed)
    student = recipe.make_model(16)
    optimizer = recipe.make_optimizer(student)
    for epoch in range(recipe.config.max_epochs):
        for image, digit in batches(data, recipe.config, epoch):
            optimizer.zero_grad()
            recipe.loss_of(teacher, student, image, digit).backward()
            optimizer.step()
    return weights_of({"teacher": teacher, "student": student})
