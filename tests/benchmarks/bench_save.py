"""How long training stands still for a checkpoint of a 256 MB model, against `torch.save` alone.

    python -m tests.benchmarks.bench_save [--rounds 7] [--megabytes 256]

`torch.save` writes the same values to a file, without fsync, checksum or rename. The rounds of all
ways are interleaved, so that a slow moment of the machine hits all of them; medians are compared.
Between two background saves training has the time to let the write end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from danling.callbacks import ModelCheckpoint
from danling.callbacks.run_directory import RunDirectory
from danling.runner.accelerate import AccelerateRunner


def make_runner(root: Path, megabytes: int, checkpoint: ModelCheckpoint) -> AccelerateRunner:
    """A runner whose checkpoint is dominated by weights; nothing but it is saved."""
    width = 1024
    layers = [nn.Linear(width, width, bias=False) for _ in range(megabytes // 4)]
    return AccelerateRunner(
        {"project_root": str(root), "seed": 0, "max_steps": 1, "accelerate": {"cpu": True}},
        model=nn.Sequential(*layers),
        optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
        callbacks=[RunDirectory(), checkpoint],
        default_callbacks=False,
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(root: Path, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds for which each way holds up the training, and of a background save as a whole."""
    times: dict[str, list[float]] = {
        name: [] for name in ("torch.save", "torch.save + fsync", "sync", "async", "async, whole")
    }
    checkpoints = {
        "sync": ModelCheckpoint(None),
        "async": ModelCheckpoint(None, asynchronous=True),
    }
    runners = {name: make_runner(root, megabytes, c) for name, c in checkpoints.items()}
    for name, runner in runners.items():
        runner.__enter__()
        checkpoints[name].on_train_start(runner)
    for number in range(rounds + 1):  # the first warms up
        row = {"torch.save": seconds(lambda: plain(runners["sync"], root, sync=False))}
        row["torch.save + fsync"] = seconds(lambda: plain(runners["sync"], root, sync=True))
        for name, runner in runners.items():
            runner.counters.global_step += 1
            row[name] = seconds(partial(checkpoints[name]._save, runner, {"latest": {}}))
        rest = seconds(lambda: checkpoints["async"]._deliver(runners["async"], wait=True))
        row["async, whole"] = row["async"] + rest
        for name, value in row.items() if number else ():
            times[name].append(value)
    for runner in runners.values():
        runner.__exit__(None, None, None)
    return times


def plain(runner: AccelerateRunner, root: Path, *, sync: bool) -> None:
    with open(root / "plain.pth", "wb") as file:
        torch.save(runner.state_dict(), file)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def rows(quick: bool) -> list[tuple[str, str]]:
    """The medians as multiples of `torch.save`, which has no fsync."""
    megabytes = 64 if quick else 256
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), megabytes, 3 if quick else 7)
    baseline = statistics.median(times["torch.save"])
    return [
        (f"{name}, {megabytes} MB", f"{statistics.median(values) / baseline:.2f} times torch.save")
        for name, values in times.items()
        if name != "torch.save"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        times = measure(Path(folder), arguments.megabytes, arguments.rounds)
    baseline = statistics.median(times["torch.save"])
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:20} {middle:7.3f} s  {middle / baseline:5.2f} x   ({spread})")


if __name__ == "__main__":
    main()
