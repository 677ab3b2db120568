"""A training that can be killed at any step and continued in a fresh process, and what came of it.

Everything that is easy to get wrong takes part: shuffling, dropout, augmentation that draws from
python, numpy and torch, momentum, a schedule per step, metrics with state, early stopping.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it, for seconds: here, and not in every fork
from torch import nn

import danling as dl
from danling.callbacks import EarlyStopping, ModelCheckpoint

SAMPLES, BATCH, EPOCHS = 64, 4, 3


class Augmented(torch.utils.data.Dataset):
    """Samples that are disturbed by all three random generators, and know their index."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(SAMPLES, 8, generator=generator)
        self.targets = self.inputs.sum(1, keepdim=True)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1)) + torch.randn(8) * 0.1
        return {
            "input": self.inputs[index] + noise,
            "target": self.targets[index],
            "index": torch.tensor(index),
        }


class Range:
    """A metric with state: the span of the outputs of an epoch."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.low = min(self.low, float(output.min()))
        self.high = max(self.high, float(output.max()))

    def merge_state(self, others: list[Range]) -> None:
        self.low = min([self.low, *(other.low for other in others)])
        self.high = max([self.high, *(other.high for other in others)])

    def compute(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Setting:
    """What is varied between the cases."""

    workers: int = 0
    persistent: bool = False
    accumulation: int = 1
    optimizer: str = "sgd"
    schedule: str = "step"
    every: str = "1 step"
    evaluate_every: str = "1 epoch"
    asynchronous: bool = False
    epochs: int = EPOCHS


class Kill(dl.Callback):
    """Die as by `kill -9`, in the middle of a step."""

    priority = 1000

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        if runner.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Runner(dl.AccelerateRunner):
    """Trains on the mappings of `Augmented`, and writes down which samples came when."""

    def __init__(self, root: Path, setting: Setting, kill_at: int | None = None) -> None:
        loader = {"batch_size": BATCH, "num_workers": setting.workers}
        if setting.workers:
            loader["persistent_workers"] = setting.persistent
        config = {
            "project_root": str(root / "experiments"),
            "seed": 1,
            "max_epochs": setting.epochs,
            "log_interval": 5,
            "evaluate_every": setting.evaluate_every,
            "scheduler_interval": setting.schedule,
            "max_grad_norm": 1.0,
            "accelerate": {"cpu": True, "gradient_accumulation_steps": setting.accumulation},
            "dataloader": {"train": loader, "val": {"batch_size": 16}},
            "resume": "auto",
        }
        checkpoint = ModelCheckpoint(every=setting.every, asynchronous=setting.asynchronous)
        super().__init__(config, callbacks=[checkpoint, EarlyStopping(patience=9), Kill(kill_at)])
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 1))
        self.optimizer = make_optimizer(setting.optimizer, self.model)
        decay = 0.98 if setting.schedule == "step" else 0.7
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: decay**n)
        self.datasets = {"train": Augmented(), "val": Augmented()}
        self.metrics = {
            "range": Range(),
            "mae": lambda output, target: (output - target).abs().mean(),
        }
        self.seen = root / "seen.jsonl"

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        with self.seen.open("a") as file:
            row = [
                self.epoch,
                self.batch_index,
                batch["index"].tolist(),
                batch["input"].sum().item(),
            ]
            file.write(json.dumps(row) + "\n")
        return self._forward(batch, "train")

    def evaluate_step(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        return self._forward(batch, "val")

    def _forward(self, batch: dict[str, torch.Tensor], split: str) -> dict[str, Any]:
        output = self.model(batch["input"])
        metrics = self.metrics_of(split)
        metrics["range"].update(output.detach(), batch["target"])
        mae = metrics["mae"](output.detach(), batch["target"])
        return {"loss": nn.functional.mse_loss(output, batch["target"]), "mae": mae}


def make_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def outcome_of(runner: dl.AccelerateRunner) -> dict[str, Any]:
    """What a resumed training must have in common with one that nobody interrupted."""
    return {
        "weights": digest(runner.unwrapped_model.state_dict()),
        "optimizer": digest(runner.optimizer.state_dict()),
        "scheduler": digest(runner.scheduler.state_dict()),
        "results": runner.results,
        "early_stopping": str(runner.callbacks["early_stopping"].state_dict()),
        "steps": runner.global_step,
    }


def train(root: Path, setting: Setting, kill_at: int | None = None) -> None:
    """Train in this process, and leave what came of it in `outcome.json`."""
    torch.set_num_threads(1)
    runner = Runner(root, setting, kill_at)
    runner.train()
    outcome = outcome_of(runner) | {
        "best": runner.best_score,
        "exact": None if runner.resume_report is None else runner.resume_report["exact"],
        "directory": runner.dir.name,
    }
    (root / "outcome.json").write_text(json.dumps(outcome))


def in_process(work: Callable[..., None], *args: Any) -> int:
    """Do something in a process of its own, forked for speed; returns how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(root: Path) -> dict[str, Any]:
    """What came of a training, with the samples as an uninterrupted one would have seen them."""
    result: dict[str, Any] = json.loads((root / "outcome.json").read_text())
    rows = [json.loads(line) for line in (root / "seen.jsonl").read_text().splitlines()]
    result["seen"] = sorted({(epoch, batch): data for epoch, batch, *data in rows}.items())
    directory = root / "experiments" / result.pop("directory")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    result["metrics"] = [
        {k: v for k, v in json.loads(line).items() if k != "time"} for line in lines
    ]
    result.pop("exact")
    return result


def reference(root: Path, setting: Setting) -> dict[str, Any]:
    """The outcome of a training that nobody interrupts."""
    root.mkdir(parents=True, exist_ok=True)
    assert in_process(train, root, setting) == 0
    return outcome(root)


def interrupted(
    root: Path, setting: Setting, *steps: int, then: Setting | None = None
) -> dict[str, Any]:
    """The outcome of one that is killed at the given steps, and then left to end."""
    root.mkdir(parents=True, exist_ok=True)
    for step in steps:
        assert in_process(train, root, setting, step) == -signal.SIGKILL
        setting = then or setting
    assert in_process(train, root, setting) == 0
    return outcome(root)


def digest(state: Any) -> str:
    """Of every bit of a state dict."""
    sha = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(str(value.dtype).encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                sha.update(str(key).encode())
                visit(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        else:
            sha.update(repr(value).encode())

    visit(state)
    return sha.hexdigest()


def name(setting: Setting) -> str:
    """Of a setting, for the ids of tests."""
    default = asdict(Setting())
    changed = [f"{key}={value}" for key, value in asdict(setting).items() if value != default[key]]
    return ",".join(changed) or "plain"
