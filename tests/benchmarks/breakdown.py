"""Where the microseconds of a step go that DanLing takes more than a hand-written loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

import danling as dl
from tests.benchmarks.tasks import SMALL, Batch, make_perceptron
from tests.benchmarks.work import Work, make_optimizer

Loop = Callable[[dl.AccelerateRunner], None]


def rows(quick: bool) -> list[tuple[str, str]]:
    """The parts of a step, each with what it adds to the one before."""
    work = Work.of(Path(), SMALL[0], steps=1000, epochs=1, features=False)
    best = dict.fromkeys(LOOPS, float("inf"))
    for _ in range(5 if quick else 30):
        for name, loop in LOOPS.items():
            best[name] = min(best[name], microseconds(work, loop))
    found, before = [], 0.0
    for name, cost in best.items():
        found.append((f"a step, {name}", f"{cost:.1f} µs ({cost - before:+.1f})"))
        before = cost
    return found


def microseconds(work: Work, loop: Loop) -> float:
    """Per step, in an epoch of a runner without callbacks."""
    model = make_perceptron()
    runner = dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 2, "accelerate": {"cpu": True}},
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=make_optimizer(model),
        dataloaders={"train": work.train},
        default_callbacks=False,
    )
    times = []
    with runner:
        for _ in runner.epochs():
            start = time.perf_counter()
            loop(runner)
            times.append(time.perf_counter() - start)
    return min(times) / len(work.train) * 1e6


def by_hand(runner: dl.AccelerateRunner) -> None:
    model, criterion, optimizer = runner.model, runner.criterion, runner.optimizer
    for input, target in runner.dataloaders["train"]:
        loss = criterion(model(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def without_range(runner: dl.AccelerateRunner) -> None:
    plain(runner, runner.dataloaders["train"])


def from_batches(runner: dl.AccelerateRunner) -> None:
    plain(runner, runner.batches())


def plain(runner: dl.AccelerateRunner, batches: Iterable[Batch]) -> None:
    model, criterion, optimizer = runner.model, runner.criterion, runner.optimizer
    parameters = list(model.parameters())
    for input, target in batches:
        loss = criterion(model(input), target)
        loss.backward()
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def from_train_step(runner: dl.AccelerateRunner) -> None:
    optimizer, parameters = runner.optimizer, list(runner.model.parameters())
    for batch in runner.batches():
        runner.train_step(batch).backward()
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def without_averages(runner: dl.AccelerateRunner) -> None:
    runner.logbook.meter.add = lambda *_: None  # this part is left out
    whole(runner)


def whole(runner: dl.AccelerateRunner) -> None:
    for batch in runner.batches():
        runner.step(runner.train_step(batch))


LOOPS: dict[str, Loop] = {
    "by hand": by_hand,
    "gradients forgotten without the profiler's range of `zero_grad`": without_range,
    "and from `runner.batches()`": from_batches,
    "and with `runner.train_step()`": from_train_step,
    "and with `runner.step()`, but no averages": without_averages,
    "and with the averages of the loss: all": whole,
}
