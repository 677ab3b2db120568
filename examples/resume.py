"""Die in the middle of an epoch, go on, and prove that nothing was lost.

The script trains a digits classifier three times in processes of its own: once undisturbed, once
until it kills itself with SIGKILL, and once more with the same command line, which goes on from the
last checkpoint. Dropout, shuffling, noise on the images and momentum all take part, and still the
two models are equal bit for bit.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import danling as dl
from danling.callbacks import ModelCheckpoint


class NoisyDigits(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self) -> None:
        pixels, digits = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels, dtype=torch.float32) / 16
        self.digits = torch.tensor(digits)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(64) * random.uniform(0, 0.2)  # drawn anew for every epoch
        return self.images[index] + noise, self.digits[index]


class Crash(dl.Callback):
    """What a power cut, an out-of-memory killer or an impatient scheduler does."""

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        if runner.global_step == 100:
            os.kill(os.getpid(), signal.SIGKILL)


def train(run_name: str, *callbacks: dl.Callback) -> None:
    config = dl.Config(experiment_name="resume", run_name=run_name, seed=0, max_epochs=4)
    config.dataloader = {"batch_size": 32}
    config.resume = "auto"  # go on with the newest unfinished run of this code and config
    dl.seed_everything(config)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = dl.AccelerateRunner(
        config,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        datasets={"train": NoisyDigits()},
        callbacks=[ModelCheckpoint(every="10 steps"), *callbacks],
    )
    runner.train()
    torch.save(model.state_dict(), Path(config.project_root, f"{run_name}.pth"))
    if runner.resume_report is not None:
        print(f"went on from {runner.resume_report['checkpoint']}, exact: ", end="")
        print(runner.resume_report["exact"])


def in_new_process(*arguments: str) -> int:
    return subprocess.run([sys.executable, __file__, *arguments], check=False).returncode


if len(sys.argv) > 1:
    train(sys.argv[1], *([Crash()] if "crash" in sys.argv else []))
else:
    print("1. undisturbed", flush=True)
    in_new_process("undisturbed")
    print("\n2. killed at step 100: exit code", in_new_process("killed", "crash"))
    print("\n3. the same command again", flush=True)
    in_new_process("killed")
    whole, resumed = (torch.load(f"experiments/{n}.pth") for n in ("undisturbed", "killed"))
    runs = list(Path("experiments").glob("resume-killed-*/"))
    equal = len(runs) == 1 and all(torch.equal(whole[name], resumed[name]) for name in whole)
    print(f"\nthe weights are {'equal, bit for bit' if equal else 'DIFFERENT'}")
    sys.exit(not equal)
