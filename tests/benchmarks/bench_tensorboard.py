"""What it costs to log ten scalars per step: ours, torch's and Accelerate's, side by side.

python -m tests.benchmarks.bench_tensorboard [STEPS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker
from torch.utils.tensorboard import SummaryWriter

from danling.tensorboard.event_file import EventWriter

Log = Callable[[Mapping[str, float], int], object]
VALUES = {f"train/metric_{index}": index / 7 for index in range(10)}
ROUNDS = 5


def microseconds(log: Log, steps: int, first: int) -> tuple[float, float]:
    """Time per step: on the clock, and of the processor, which other processes do not change."""
    start = time.perf_counter(), time.process_time()
    for step in range(first, first + steps):
        log(VALUES, step)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return wall / steps * 1e6, cpu / steps * 1e6


def measure(steps: int) -> dict[str, tuple[float, float]]:
    """Microseconds per step of each way: on the clock, and of the processor."""
    PartialState()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ours", "torch"):
            (Path(folder) / name).mkdir()
        ours = EventWriter(Path(folder) / "ours")
        torch_writer = SummaryWriter(str(Path(folder) / "torch"))
        accelerate_tracker = TensorBoardTracker("run", folder)
        accelerate_tracker.start()

        def log_with_torch(values: Mapping[str, float], step: int) -> None:
            for tag, value in values.items():
                torch_writer.add_scalar(tag, value, step)

        ways: dict[str, Log] = {
            "danling.EventWriter": ours.add_scalars,
            "torch SummaryWriter": log_with_torch,
            "accelerate tracker": lambda values, step: accelerate_tracker.log(dict(values), step),
        }
        # in turns, and the best round of each: another process on the machine slows down all three
        rounds = [
            {name: microseconds(log, steps, turn * steps) for name, log in ways.items()}
            for turn in range(ROUNDS)
        ]
        ours.close()
        torch_writer.close()
        accelerate_tracker.finish()
    return {name: min(turn[name] for turn in rounds) for name in ways}


def rows(quick: bool) -> list[tuple[str, str]]:
    """The time on the clock, and the ratio of the processor's."""
    best = measure(500 if quick else 2000)
    base = best["danling.EventWriter"][1]
    return [
        (f"{len(VALUES)} scalars per step, {name}", f"{wall:.0f} µs, {cpu / base:.1f} times ours")
        for name, (wall, cpu) in best.items()
    ]


def main(steps: int) -> None:
    best = measure(steps)
    print(f"{len(VALUES)} scalars per step, microseconds per step")
    for name, (wall, cpu) in best.items():
        ratio = cpu / best["danling.EventWriter"][1]
        print(f"{name:<20} {wall:8.1f} on the clock {cpu:8.1f} of the processor   x{ratio:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
