"""Several optimizers, each of which learns from its own loss alone, on several processes too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression, weights

pytestmark = pytest.mark.distributed


class Pair(nn.Module):
    """A generator, and a critic through which its loss goes."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(4, 4)
        self.critic = nn.Linear(4, 1)

    def forward(self, inputs: Tensor, as_critic: bool) -> Tensor:
        generated = self.generator(inputs)
        return self.critic(generated.detach() if as_critic else generated)


class Adversaries(Regression):
    """Takes two steps per batch, and counts what the loss of one does to the other."""

    def __init__(self, folder: Path, config: dict[str, Any], buckets: bool) -> None:
        self.buckets = buckets
        super().__init__(folder, config, samples={"train": 48}, model=Pair)
        self.optimizer = {
            "critic": torch.optim.SGD(self.model.critic.parameters(), lr=0.1, momentum=0.9),
            "generator": torch.optim.SGD(self.model.generator.parameters(), lr=0.05),
        }

    def make_accelerator(self) -> Accelerator:
        options = DistributedDataParallelKwargs(
            find_unused_parameters=True, gradient_as_bucket_view=self.buckets
        )
        return Accelerator(cpu=True, kwargs_handlers=[options])

    def train(self) -> None:
        with self:
            for _ in self.epochs():
                for inputs, targets in self.batches():
                    loss = nn.functional.mse_loss(self.model(inputs, True), targets)
                    self.step(loss, "critic")
                    self.step(self.model(inputs, False).mean(), "generator")


def training(folder: Path, batch_size: int, accumulation: int, buckets: bool) -> None:
    config = {
        "dataloader": {"batch_size": batch_size},
        "accelerate": {"gradient_accumulation_steps": accumulation},
        "max_grad_norm": 0.5,
    }
    runner = Adversaries(folder, config, buckets)
    runner.train()
    leave(folder, [weights(runner), runner.global_step])


def trained(folder: Path, size: int, *args: Any) -> Any:
    folder.mkdir()
    succeed(size, training, folder, *args, folder=folder)
    found = results(folder, size)
    assert all(one == other for one, other in pairwise(found))
    return found[0]


@pytest.mark.parametrize(("accumulation", "buckets"), [(1, False), (3, False), (3, True)])
def test_several_optimizers_learn_as_on_one_process(
    accumulation: int, buckets: bool, tmp_path: Path
) -> None:
    alone, steps = trained(tmp_path / "one", 1, 8, accumulation, buckets)

    several, others = trained(tmp_path / "two", 2, 4, accumulation, buckets)

    assert steps == others == 2 * 2 * 6 / accumulation
    assert np.ravel(several) == pytest.approx(np.ravel(alone), rel=1e-4, abs=1e-6)


class Together(Regression):
    """Two optimizers that step on one loss, one with schedules of its own."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config, samples={"train": 48})
        parameters = list(self.model.parameters())
        self.optimizer = [
            torch.optim.SGD([p for p in parameters if p.ndim > 1], lr=0.05, momentum=0.9),
            torch.optim.AdamW([p for p in parameters if p.ndim == 1], lr=0.02),
        ]
        self.scheduler = [
            torch.optim.lr_scheduler.ExponentialLR(self.optimizer[0], 0.95),
            (torch.optim.lr_scheduler.StepLR(self.optimizer[1], 1, 0.5), "epoch"),
        ]


def stepping_together(folder: Path, batch_size: int) -> None:
    runner = Together(folder, {"dataloader": {"batch_size": batch_size}, "max_grad_norm": 0.5})
    runner.train()
    rates = list(runner.optimization.learning_rates().values())
    leave(folder, [weights(runner), runner.global_step, rates])


def test_optimizers_that_step_together_learn_as_on_one_process(tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        succeed(size, stepping_together, folder, 8 // size, folder=folder)
        found.append(results(folder, size))

    (alone,), (several, other) = found
    assert several == other
    assert several[1:] == alone[1:]
    assert several[1] == 12
    assert np.ravel(several[0]) == pytest.approx(np.ravel(alone[0]), rel=1e-4, abs=1e-6)
