"""Two callbacks of your own: a diagnosis that is logged, and a limit that survives a resume."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import TensorDataset

import danling as dl


class UpdateRatio(dl.Callback):
    """Logs how far a step moves the weights, relative to their size: about 1e-3 is healthy."""

    before: list[Tensor] = []

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        if runner.global_step % 10 == 0:  # a copy of all weights is not for every step
            self.before = [weight.detach().clone() for weight in runner.model.parameters()]

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        if self.before:
            now = [weight.detach() for weight in runner.model.parameters()]
            moved = [new - old for new, old in zip(now, self.before, strict=True)]
            runner.log({"update_ratio": get_total_norm(moved) / get_total_norm(self.before)})
            self.before = []


class TimeLimit(dl.Callback):
    """Stops when training has taken so many seconds, all launches of the run together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.used = 0.0

    def on_train_start(self, runner: dl.AccelerateRunner) -> None:
        self.started = time.monotonic() - self.used

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.used = time.monotonic() - self.started
        if self.used > self.seconds:
            runner.stop(f"{self.seconds} seconds are over")

    def state_dict(self) -> dict[str, Any]:  # goes into the checkpoint
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used = state["used"]


class Regression(dl.Config):
    experiment_name = "own-callback"
    seed = 0
    max_epochs = 50
    dataloader = {"batch_size": 32}
    time_limit: float = 30.0  # seconds


config = Regression.parse()
dl.seed_everything(config)

inputs = torch.rand(2000, 2) * 6 - 3
targets = torch.sin(inputs[:, :1]) * torch.cos(inputs[:, 1:])
model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.MSELoss(),
    optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
    datasets={"train": TensorDataset(inputs, targets)},
    callbacks=[UpdateRatio(), TimeLimit(config.time_limit)],
)
runner.train()

loss = runner.results[-1]["train"]["loss"]
print(f"loss {loss:.4f} after {runner.global_step} steps")
print(f"stopped because {runner.stop_reason}" if runner.should_stop else "trained to the end")
print(f"the update ratios are in {runner.dir / 'metrics.jsonl'}")
