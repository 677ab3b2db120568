"""Batches that are only read, and batches that are evaluated, by hand and by DanLing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import Dataset

import danling as dl
from tests.benchmarks.tasks import SMALL, Task
from tests.benchmarks.work import make_optimizer, spread, validate

Way = Callable[[], object]


def reading(task: Task, *, rounds: int, steps: int) -> dict[str, Any]:
    """Microseconds to read a batch, by hand and with a runner, and their ratio."""
    runner = make_runner(task, steps)
    by_hand = task.loader(task.make_data(steps), shuffle=True)
    loader = runner.loader("train")
    return compared(
        lambda: deque(by_hand, 0), lambda: deque(loader.iterate(0), 0), rounds=rounds, steps=steps
    )


def evaluation(task: Task, *, rounds: int, steps: int) -> dict[str, Any]:
    """Microseconds to evaluate a batch, by hand and with `runner.evaluate`, and their ratio."""
    runner = make_runner(task, steps)
    by_hand = task.loader(task.make_data(steps), shuffle=False)
    return compared(
        lambda: validate(runner.model, runner.criterion, by_hand),
        lambda: runner.evaluate("val"),
        rounds=rounds,
        steps=steps,
    )


def make_runner(task: Task, steps: int) -> dl.AccelerateRunner:
    """A runner of a task without callbacks, ready to read."""
    model = task.make_model()
    data = {"train": task.make_data(steps), "val": task.make_data(steps)}
    is_dataset = isinstance(data["train"], Dataset)
    runner = dl.AccelerateRunner(
        {
            "seed": 0,
            "max_epochs": 1,
            "accelerate": {"cpu": True},
            "dataloader": {"batch_size": task.batch_size},
        },
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=make_optimizer(model),
        datasets=data if is_dataset else None,
        dataloaders=None if is_dataset else data,
        default_callbacks=False,
    )
    runner.prepare()
    return runner


def compared(by_hand: Way, ours: Way, *, rounds: int, steps: int) -> dict[str, Any]:
    """Of each round the fastest of three; a ratio is of one round."""
    hand, mine = [], []
    for _ in range(rounds):
        hand.append(fastest(by_hand) / steps * 1e6)
        mine.append(fastest(ours) / steps * 1e6)
    ratios = [b / a for a, b in zip(hand, mine, strict=True)]
    return {
        "us_by_hand": spread(hand),
        "us_danling": spread(mine),
        "times_by_hand": spread(ratios),
    }


def fastest(way: Way) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return min(times)


def rows(quick: bool) -> dict[str, dict[str, Any]]:
    """Both measures of every line of the table."""
    rounds, steps = (2, 200) if quick else (7, 1000)
    found: dict[str, dict[str, Any]] = {}
    for task in SMALL:
        found[task.name] = {"evaluation": evaluation(task, rounds=rounds, steps=steps)}
        if not isinstance(task.make_data(1), list):  # which is read by asking for the next item
            found[task.name]["reading"] = reading(task, rounds=rounds, steps=steps)
    return found
