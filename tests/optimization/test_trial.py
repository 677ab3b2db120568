from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from danling.optimization.trial import Undo
from danling.testing import is_equal


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_steps_are_undone_to_the_bit(kind: Any, begun: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    temperature = nn.Parameter(torch.ones(1))  # in no module
    rate = torch.tensor(0.1) if kind is torch.optim.AdamW else 0.1
    optimizer = kind([*model.parameters(), temperature], lr=rate)

    def step() -> None:
        (model(torch.randn(8, 3)) * temperature).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    if begun:
        step()
    before = copy.deepcopy((model.state_dict(), temperature, optimizer.state_dict()))
    undo = Undo([model], [optimizer])
    for _ in range(3):
        step()
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    undo()

    assert is_equal((model.state_dict(), temperature, optimizer.state_dict()), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_can_be_undone_more_than_once():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = copy.deepcopy(model.state_dict())
    undo = Undo([model], [optimizer])
    for _ in range(2):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        undo()
        assert is_equal(model.state_dict(), before)
        assert not optimizer.state
