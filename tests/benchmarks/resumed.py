"""One measure of `resuming.py`: saves a model, or goes on from it; prints seconds and megabytes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import danling as dl

MATRIX = 1024  # of 4 MB
_STATUS = Path("/proc/self/status")


def make_parts(megabytes: int) -> dict[str, Any]:
    layers = [nn.Linear(MATRIX, MATRIX, bias=False) for _ in range(megabytes // 4)]
    model = nn.Sequential(*layers)
    return {
        "model": model,
        "criterion": nn.MSELoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "dataloaders": {"train": [(torch.randn(1, MATRIX), torch.randn(1, MATRIX))] * 4},
    }


def config(folder: str, steps: int) -> dict[str, Any]:
    return {
        "project_root": str(Path(folder, "experiments")),
        "seed": 0,
        "max_steps": steps,
        "accelerate": {"cpu": True},
    }


def latest(folder: str) -> Path:
    """The checkpoint that was saved."""
    return next(Path(folder).glob("experiments/*/checkpoints/latest.pth"))


def anonymous() -> float:
    """Megabytes of this process that are of no file."""
    if not _STATUS.exists():
        return float("nan")
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Notes the seconds of a block, and by how much memory grew at most."""
    before = anonymous()
    most, ended = [before], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            most.append(max(most.pop(), anonymous()))

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        yield
        found["seconds"] = time.perf_counter() - start
    finally:
        ended.set()
        thread.join()
    found["megabytes"] = most[0] - before


def main() -> None:
    what, megabytes, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    found: dict[str, float] = {}
    parts = make_parts(megabytes)
    if what == "save":
        dl.AccelerateRunner(config(folder, 1), **parts).train()
    elif what == "resume":
        runner = dl.AccelerateRunner(config(folder, 2) | {"resume": str(latest(folder))}, **parts)
        with watched(found):
            runner.__enter__()
        assert runner.global_step == 1, "it has not gone on"
        runner.__exit__(None, None, None)
    else:
        path = latest(folder)
        with watched(found):
            if what == "read":
                dl.read_checkpoint(path)
            else:
                dl.AccelerateRunner.from_checkpoint(path, **parts)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
