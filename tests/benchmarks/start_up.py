"""Prints seconds: import danling, its runner after torch, the first step."""

from __future__ import annotations

import sys
import time

start = time.perf_counter()
import danling as dl  # noqa: E402

imported = time.perf_counter() - start

import accelerate  # noqa: E402, F401
import torch  # noqa: E402
from torch import nn  # noqa: E402

start = time.perf_counter()
make_runner = dl.AccelerateRunner
loaded = time.perf_counter() - start

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = [(torch.randn(8, 16), torch.randint(0, 4, (8,)))]
ended: list[float] = []


class Watch(dl.Callback):
    priority = dl.Priority.LOWEST

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        ended.append(time.perf_counter())


start = time.perf_counter()
make_runner(
    {"seed": 0, "max_epochs": 1, "project_root": sys.argv[1], "accelerate": {"cpu": True}},
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=optimizer,
    dataloaders={"train": batches},
    callbacks=[Watch()],
).train()
print(imported, loaded, ended[0] - start)
