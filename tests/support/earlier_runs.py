"""The script of the runs in tests/fixtures, which an earlier version of the library has begun.

`plain` and `window` (two micro-batches in a step) were stopped at global step 5 and 7, at the end
of an epoch or within one; `expected.json` has the weights and results of those that were not.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import danling as dl

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples that draw from two generators of the process."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(2) * 0.1 + random.random()
        return torch.full((2,), float(index)) + noise, torch.tensor([float(index)])


def make_runner(root: Path, accumulate: int, resume: str) -> dl.AccelerateRunner:
    config: dict[str, Any] = {
        "seed": 3,
        "max_epochs": 3,
        "project_root": str(root),
        "dataloader": {"batch_size": 4},
        "accelerate": {"cpu": True, "gradient_accumulation_steps": accumulate},
        "log_interval": 2,
    }
    dl.seed_everything(3)
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return dl.AccelerateRunner(
        config,
        model=model,
        criterion=nn.MSELoss(),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
        datasets={"train": Noisy(), "val": Noisy()},
        resume=resume,
    )
