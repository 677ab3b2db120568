"""What must not grow: a step with the number of steps, an epoch with that of epochs, a hook."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import danling as dl
from danling.callbacks import Results, RunDirectory, RunRecord
from danling.runner.callbacks import Callbacks
from tests.benchmarks.peers import danling
from tests.benchmarks.race import silence
from tests.benchmarks.tasks import SMALL, make_perceptron
from tests.benchmarks.work import Work, by_hand, make_optimizer

Row = tuple[str, str]
_START = Path(__file__).with_name("start_up.py")


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The fastest of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def make_runner(steps: int, callbacks: list[dl.Callback], **config: Any) -> dl.AccelerateRunner:
    """A runner of the small model, without default callbacks."""
    work = Work.of(Path(), SMALL[0], steps=steps, epochs=1, features=False)
    model = make_perceptron()
    return dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 1, "evaluate_every": None, "accelerate": {"cpu": True}} | config,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=make_optimizer(model),
        dataloaders={"train": work.train, "val": work.val},
        default_callbacks=False,
        callbacks=callbacks,
    )


def short_epochs(quick: bool) -> list[Row]:
    """What an epoch costs besides its steps, which are one here."""
    work = Work.of(Path(), SMALL[0], steps=1, epochs=200 if quick else 1000, features=False)
    times: dict[Callable[[Work], list[float]], float] = {}
    for run in (by_hand, danling, by_hand, danling):
        times[run] = min(times.get(run, 1.0), statistics.median(run(work)))
    extra = (times[danling] - times[by_hand]) * 1e3
    return [("epoch of one batch, more than by hand", f"{extra:.3f} ms")]


def dispatch(quick: bool) -> list[Row]:
    """A hook that nobody, or everybody, overrides."""

    class Listener(dl.Callback):
        def __init__(self, index: int) -> None:
            self.name = f"listener_{index}"

        def on_step(self, runner: Any) -> None:
            """Listen."""

    rows, calls = [], 1000
    for amount in (10, 100, 1000):
        hooks = Callbacks([Listener(index) for index in range(amount)])
        for hook in ("on_batch_start", "on_step"):
            cost = seconds(lambda: call(hooks, hook, calls), 5) / calls  # noqa: B023
            per = f"{cost / amount * 1e9:.0f} ns per listener" if hook == "on_step" else "idle"
            rows.append((f"{hook} with {amount} callbacks", f"{cost * 1e6:.2f} µs, {per}"))
    return rows


def call(hooks: Callbacks, hook: str, times: int) -> None:
    for _ in range(times):
        hooks(hook, hooks)


def many_steps(quick: bool) -> list[Row]:
    """Step time and memory early and late in one epoch; the batch is the same one all the time."""
    total = 100_000 if quick else 1_000_000
    marks: dict[int, tuple[float, int]] = {}
    watched = {1000, 11_000, total - 10_000, total}

    class Watch(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step in watched:
                marks[runner.global_step] = (time.perf_counter(), resident())

    runner = make_runner(1, [Watch()])
    runner.dataloaders["train"] = runner.dataloaders["train"] * total
    runner.train()
    early = (marks[11_000][0] - marks[1000][0]) / 10_000
    late = (marks[total][0] - marks[total - 10_000][0]) / 10_000
    grown = (marks[total][1] - marks[11_000][1]) / 1e6 / (total - 11_000) * 1e5
    return [
        (f"step at {total:,} against at 1,000", f"{late / early:.2f} times"),
        ("memory grown in 100,000 steps", f"{grown:.2f} MB"),
    ]


def many_epochs(quick: bool) -> list[Row]:
    """Writing the results after an epoch, with all those before it in them."""
    rows = []
    for amount in (1, 100, 1000 if quick else 10_000):
        with tempfile.TemporaryDirectory() as folder, silence():
            callback = Results()
            runner = make_runner(1, [*recorded(), callback], project_root=folder)
            history = [{"epoch": index, "global_step": index} for index in range(amount)]
            values = {"train": {"loss": 0.1234567}, "val": {"loss": 0.7654321}}
            runner.history.restore([row | values for row in history])
            with runner:
                callback.on_train_start(runner)
                callback._rewrite(runner)
                cost = seconds(lambda: callback._rewrite(runner), 5)  # noqa: B023
        rows.append((f"results.json with {amount:,} epochs", f"{cost * 1e3:.2f} ms"))
    return rows


def recorded() -> list[dl.Callback]:
    """What it takes for a run to have a directory, and to be found in it again."""
    return [RunDirectory(), RunRecord()]


def resuming(quick: bool) -> list[Row]:
    """The start, the next step and the end of a run that was interrupted within an epoch."""
    rows = []
    for done in (10, 100) if quick else (10, 1000, 10_000):
        with tempfile.TemporaryDirectory() as folder, silence():
            config = {"project_root": folder, "max_steps": done}
            first = make_runner(2 * done, recorded(), **config)
            with first:
                for _ in first.epochs():
                    for batch in first.batches():
                        first.step(first.train_step(batch))
                first.save_checkpoint("latest")
            times = []
            for extra in range(1, 4):
                config |= {
                    "max_steps": done + extra,
                    "resume": str(first.checkpoint_dir / "latest.pth"),
                }
                times.append(seconds(make_runner(2 * done, recorded(), **config).train, 1))
        rows.append((f"resumed after {done:,} batches of an epoch", f"{min(times) * 1e3:.0f} ms"))
    return rows


def start_up(quick: bool) -> list[Row]:
    """A process of its own, in a git repository of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "start_up.py")
        script.write_bytes(_START.read_bytes())
        git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "add", "start_up.py"], check=True)
        subprocess.run([*git, "commit", "-qm", "start"], check=True)
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
        results = []
        for _ in range(3 if quick else 9):
            command = [sys.executable, str(script), str(Path(folder, "experiments"))]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, cwd=folder
            )
            results.append([float(number) for number in done.stdout.split()])
    names = (
        "import danling",
        "danling.AccelerateRunner, after torch and accelerate",
        "from the constructor to the end of the first step",
        "a start, over importing torch and accelerate",
    )
    columns = zip(*([*result, sum(result)] for result in results), strict=True)
    return [
        (name, f"{statistics.median(column) * 1e3:.0f} ms (at best {min(column) * 1e3:.0f})")
        for name, column in zip(names, columns, strict=True)
    ]


def resident() -> int:
    """Bytes of memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


ALL = [
    short_epochs,
    dispatch,
    many_steps,
    many_epochs,
    resuming,
    start_up,
]
