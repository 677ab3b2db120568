"""The step of several processes is that of a loop written by hand on Accelerate, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import danling as dl
from tests.distributed.processes import leave, results, succeed

pytestmark = pytest.mark.distributed

STEPS = 8


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def make_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 6, generator=draw), torch.randn(4, 1, generator=draw))
        for _ in range(2 * 2 * STEPS)
    ]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def stepping(folder: Path, accumulation: int, norm: float | None, precision: str) -> None:
    model = make_model()
    runner = dl.AccelerateRunner(
        {
            "seed": 0,
            "max_epochs": 1,
            "max_grad_norm": norm,
            "accelerate": {
                "gradient_accumulation_steps": accumulation,
                "mixed_precision": precision,
            },
        },
        model=model,
        criterion=nn.functional.mse_loss,
        optimizer=make_optimizer(model),
        dataloaders={"train": make_batches()},
        default_callbacks=False,
    )
    runner.train()
    assert not runner.optimization.direct

    # the runner counts micro-batches itself, and its Accelerator none
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, mixed_precision=precision)
    expected = by_hand(accelerator, norm)

    same = [
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True)
    ]
    leave(folder, [same, runner.world_size, runner.global_step])


def by_hand(accelerator: Accelerator, norm: float | None) -> nn.Module:
    model = make_model()
    prepared, optimizer = accelerator.prepare(model, make_optimizer(model))
    for batch in make_batches()[accelerator.process_index :: 2]:
        with accelerator.accumulate(prepared):
            input, target = batch
            accelerator.backward(nn.functional.mse_loss(prepared(input), target))
            if norm is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), norm)
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("accumulation", "norm", "precision"),
    [(1, None, "no"), (2, 0.1, "no"), pytest.param(2, 0.1, "bf16", marks=pytest.mark.exhaustive)],
)
def test_two_processes_step_as_a_loop_by_hand_does(
    accumulation: int, norm: float | None, precision: str, tmp_path: Path
) -> None:
    succeed(2, stepping, tmp_path, accumulation, norm, precision, folder=tmp_path)

    assert results(tmp_path, 2) == [[[True] * 4, 2, 2 * STEPS // accumulation]] * 2
