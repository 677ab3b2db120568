"""A process that skips a batch: what the wrapper of the others waits for, it does nevertheless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import weights
from tests.distributed.test_windows import COUNTS, SKIPPED
from tests.optimization.test_windows import (
    VOCABULARY,
    Language,
    make_batches,
    sum_of_losses,
    tokens,
)

pytestmark = pytest.mark.distributed


class Normalised(nn.Module):
    """With buffers, which the processes share in each forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, VOCABULARY)
        self.unused = nn.Linear(2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(embedded)


class Skipping(Language):
    """Skips before the forward, after it, or by either on one process."""

    def __init__(self, when: str, find_unused: bool, **config: Any) -> None:
        self.find_unused = find_unused
        super().__init__(
            {"accumulate": "batches", "max_epochs": 2, **config}, batches=make_batches(COUNTS)
        )
        self.model = Normalised()
        if not find_unused:
            del self.model.unused
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.when = when

    def make_accelerator(self) -> Any:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        handler = DistributedDataParallelKwargs(find_unused_parameters=self.find_unused)
        return Accelerator(cpu=True, kwargs_handlers=[handler])

    def train_step(self, batch: dict[str, Tensor]) -> Any:
        is_skipped = 2 * self.batch_index + self.rank in SKIPPED
        if is_skipped and self.when == "before":
            return None
        loss = sum_of_losses(self.model, batch) / tokens(batch)
        return None if is_skipped else loss


def skipping(folder: Path, when: str, find_unused: bool, accumulation: int) -> None:
    options = {"gradient_accumulation_steps": accumulation}
    runner = Skipping(when, find_unused, accelerate=options)
    runner.train()
    leave(folder, [runner.global_step, weights(runner), runner.results[-1]["train"]["loss"]])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    ("when", "find_unused"),
    [("before", False), ("before", True), ("after", False), ("after", True)],
)
def test_a_process_that_skips_holds_up_nobody(
    when: str, find_unused: bool, accumulation: int, tmp_path: Path
) -> None:
    succeed(2, skipping, tmp_path, when, find_unused, accumulation, folder=tmp_path)

    one, other = results(tmp_path, 2)
    assert one[0] == 2 * len(COUNTS) / 2 / accumulation
    count = len(one[1])
    buffers = 8 + 8 + 1  # the statistics are of each process until they are shared
    parameters = count - buffers
    assert sum(a != b for a, b in zip(one[1], other[1], strict=True)) <= buffers
    assert parameters > 0
    assert one[2] == other[2]
