"""A tiny training: 6 steps per epoch, so that a test of the wiring takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from danling.callback import Callback
from danling.runner.accelerate import AccelerateRunner

MakeRunner = Callable[..., AccelerateRunner]


def make_tiny_runner(
    callbacks: Iterable[Callback] = (),
    *,
    runner_class: type[AccelerateRunner] = AccelerateRunner,
    default_callbacks: bool = False,
    optimizer: str = "sgd",
    **config: Any,
) -> AccelerateRunner:
    """A regression on 24 samples in batches of 4, for 2 epochs unless `config` says otherwise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(24, 4, generator=generator)
    data = TensorDataset(features, features.sum(1, keepdim=True))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    if optimizer == "adamw":
        chosen: Any = torch.optim.AdamW(model.parameters(), lr=0.01)
    else:
        chosen = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    settings = {"seed": 0, "max_epochs": 2, "log_interval": 2, "dataloader": {"batch_size": 4}}
    return runner_class(
        settings | config,
        model=model,
        criterion=nn.MSELoss(),
        optimizer=chosen,
        datasets={"train": data, "val": data},
        callbacks=callbacks,
        default_callbacks=default_callbacks,
    )


@pytest.fixture
def make_runner() -> MakeRunner:
    """See `make_tiny_runner`."""
    return make_tiny_runner
