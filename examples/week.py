"""A week of experiments in under a minute: thirty tiny runs to try the `danling` command on.

    python examples/week.py week && cd week && danling ls

Three learning rates, two weight decays, five seeds. Two of the runs are killed and one fails, and
half way the code is edited without a commit. Every run is a process of its own: they are forked
from one that has imported torch, which is what takes the time.
"""

import os
import runpy
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

TRAIN = '''"""A tiny network on two noisy half-moons."""

import math
import os

import torch
from torch import nn
from torch.utils.data import TensorDataset

import danling as dl


class Optim(dl.Config):
    lr: float = 0.1
    weight_decay: float = 0.0


class Moons(dl.Config):
    experiment_name = "moons"
    run_name = "mlp"
    seed = 0
    max_epochs = 4
    monitor = "val/accuracy"
    monitor_mode = "max"
    log_interval = 4
    dataloader = {"batch_size": 32}
    optim: Optim


config = Moons.parse()
dl.seed_everything(config)


def moons(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(samples, generator=generator)
    label = torch.randint(2, (samples,), generator=generator)
    x = torch.where(label == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin())
    noise = 0.25 * torch.randn(samples, 2, generator=generator)
    return TensorDataset(torch.stack([x, y], 1) + noise, label)


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


class Faulty(dl.Callback):
    def on_epoch_end(self, runner):
        if runner.epoch == 2 and os.environ.get("WEEK_FAILS"):
            raise RuntimeError("the disk of the data went away")


model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), **config.optim)
runner = dl.AccelerateRunner(
    config,
    model=model,
    criterion=nn.CrossEntropyLoss(),
    optimizer=optimizer,
    datasets={"train": moons(256, 1), "val": moons(256, 2)},
    metrics={"accuracy": accuracy},
    callbacks=[Faulty()],
)
runner.train()
'''

FIRST = "nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)"
SECOND = "nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)"
KILLED = {("0.1", "0.0", 1), ("0.01", "0.001", 1)}
FAILING = {("1.0", "0.001", 0)}


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=A Reader", "-c", "user.email=reader@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def run(lr: str, decay: str, seed: int) -> None:
    """Train in a process of its own, as `python train.py --optim.lr ...` would."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    flags = ["--optim.lr", lr, "--optim.weight_decay", decay, "--seed", str(seed)]
    sys.argv = ["train.py", *flags]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = os.getcwd()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if (lr, decay, seed) in KILLED:
        from danling.files.failpoints import set_failpoints

        set_failpoints("checkpoint.before_write=kill@5")  # in the middle of writing a checkpoint
    if (lr, decay, seed) in FAILING:
        os.environ["WEEK_FAILS"] = "1"
    code = 1
    try:
        runpy.run_path("train.py", run_name="__main__")
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "week")
    rates = ["1.0", "0.1", "0.01"]
    seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("train.py").write_text(TRAIN)
    git("init", "--quiet")
    git("add", "train.py")
    git("commit", "--quiet", "--message", "A tiny network on two half-moons")

    import danling as dl

    _ = dl.AccelerateRunner, dl.Config  # imported once, for all the processes to come
    begin = time.perf_counter()
    for lr, seed in product(rates, seeds):
        run(lr, "0.0", seed)
    Path("train.py").write_text(TRAIN.replace(FIRST, SECOND))  # an edit that nobody commits
    Path("notes.txt").write_text("wider, with tanh\n")
    for lr, seed in product(rates, seeds):
        run(lr, "0.001", seed)
    print(f"the runs took {time.perf_counter() - begin:.0f} s: cd {folder} && danling ls")


main()
