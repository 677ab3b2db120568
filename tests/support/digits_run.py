"""The digits, trained with TensorBoard: in this process, or in one that is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

import danling as dl
from danling.callbacks import LambdaCallback, TensorBoard

STEPS_PER_EPOCH = 24
LAST_STEP = 4 * STEPS_PER_EPOCH


def make_digits_runner(
    root: str,
    seed: int,
    attempt: int = 1,
    callbacks: Iterable[dl.Callback] = (),
    tensorboard: TensorBoard | None = None,
    **config: Any,
) -> dl.AccelerateRunner:
    """A network on handwritten digits for 4 epochs; `train/attempt` tells who logged a point."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, val = random_split(dataset, [1500, 297], torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    settings: dict[str, Any] = {
        "project_root": root,
        "experiment_name": "digits",
        "seed": seed,
        "max_epochs": 4,
        "log_interval": 2,
        "monitor": "val/accuracy",
        "monitor_mode": "max",
        "dataloader": {"batch_size": 64},
        "optim": {"lr": 0.01, "amsgrad": False},
    } | config
    log_attempt = LambdaCallback(
        name="log_attempt", on_step=lambda runner: runner.log("attempt", float(attempt))
    )
    return dl.AccelerateRunner(
        settings,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=settings["optim"]["lr"]),
        datasets={"train": train, "val": val},
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
        callbacks=[tensorboard or TensorBoard(histograms="1 epoch"), log_attempt, *callbacks],
    )


def at_step(step: int, action: Any) -> dl.Callback:
    """Something that happens at a step, after a value was logged that no other step has."""

    def act(runner: Any) -> None:
        if runner.global_step >= step - 4:
            runner.log("train/abandoned", 1.0)
        if runner.global_step == step:
            action()

    return LambdaCallback(name="at_step", on_step=act)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    root, killed_at = sys.argv[1], int(sys.argv[2])
    if killed_at:
        make_digits_runner(root, seed=7, callbacks=[at_step(killed_at, kill)]).train()
    else:
        [directory] = Path(root).glob("digits-*")
        make_digits_runner(root, seed=7, attempt=2, resume=str(directory)).train()
