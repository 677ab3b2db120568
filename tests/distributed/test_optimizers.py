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
