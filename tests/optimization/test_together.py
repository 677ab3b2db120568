"""Optimizers that step together: one scale, one norm, one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from danling.optimization.optimization import Optimization

OVERFLOWING = {3, 4}


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def optimizers_of(model: nn.Linear) -> list[torch.optim.Optimizer]:
    return [SGD([model.weight], lr=0.1, momentum=0.9), AdamW([model.bias], lr=0.1)]


def take_step(optimization: Optimization, loss: Tensor) -> None:
    optimization.backward(loss, "")
    optimization.open("")
    optimization.step()
    optimization.zero_grad()


@pytest.mark.parametrize("direct", [True, False])
def test_they_step_as_one_after_the_other_does(direct: bool) -> None:
    model, expected = layer(), layer()
    optimization = Optimization(Accelerator(cpu=True), {"": optimizers_of(model)}, {}, max_norm=0.5)
    optimization.direct = direct
    prepared = optimization.prepare(model)
    optimizers = optimizers_of(expected)

    for step in range(5):
        inputs = torch.full((4, 3), 0.1 * step)
        take_step(optimization, prepared(inputs).pow(2).mean())
        expected(inputs).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [True, True]
    assert [parameter.grad for parameter in model.parameters()] == [None, None]


class OnlyTheWeight(torch.autograd.Function):
    """Lets the gradient of a weight overflow, and not that of the bias."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        result: Tensor = gradients[0] * float("inf")
        return result


def test_where_one_gradient_overflows_none_of_them_moves() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    model = layer()
    optimizers = optimizers_of(model)
    schedules = [StepLR(optimizers[0], 1), StepLR(optimizers[1], 1)]
    optimization = Optimization(accelerator, {"": optimizers}, {"": schedules})
    optimization.prepare(model)
    moved, scales = [], []

    for step in range(8):
        before = [p.detach().clone() for p in model.parameters()]
        weight = OnlyTheWeight.apply(model.weight) if step in OVERFLOWING else model.weight
        output = nn.functional.linear(torch.ones(1, 3), weight, model.bias)
        take_step(optimization, output.square().sum())
        moved.append([not torch.equal(*p) for p in zip(before, model.parameters(), strict=True)])
        scales.append(accelerator.scaler.get_scale())

    assert moved == [[step not in OVERFLOWING] * 2 for step in range(8)]
    assert scales == [1024.0, 1024.0, 2048.0, 1024.0, 512.0, 512.0, 512.0, 1024.0]
    assert [schedule.last_epoch for schedule in schedules] == [6, 6]


def test_a_closure_is_evaluated_once_for_all_of_them() -> None:
    model = layer()
    optimization = Optimization(Accelerator(cpu=True), {"": optimizers_of(model)}, {})
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    optimization._prepared[""].step(closure)

    assert len(calls) == 1
    assert not any(torch.equal(*p) for p in zip(before, model.parameters(), strict=True))
