"""How long `danling --help` takes, and `danling ls` over thousands of run directories.

    python -m tests.benchmarks.bench_runs [--runs 1000 20000]

Seconds of a whole process, the median of some, and besides the time of the clock that of the
processor, which says something on a busy machine too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.runs import make_run


def seconds(command: list[str], cwd: Path, rounds: int) -> tuple[float, float]:
    """The medians of wall time and processor time of a process."""
    walls, processors = [], []
    for _ in range(rounds):
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        after = os.times()
        walls.append(time.perf_counter() - start)
        user = after.children_user - before.children_user
        processors.append(user + after.children_system - before.children_system)
    return statistics.median(walls), statistics.median(processors)


def make_runs(root: Path, count: int) -> None:
    """Runs of five seeds each, in four learning rates."""
    for number in range(1, count + 1):
        config = {"seed": number % 5, "optim": {"lr": 10.0 ** -(number % 4)}}
        score = number * 7919 % 1000 / 1000
        make_run(root, number, score=score, config=config, run_id=f"{number // 5:032x}")


def measure(sizes: list[int], rounds: int) -> Iterator[tuple[str, str]]:
    """What was measured, and its figures."""
    danling = [sys.executable, "-m", "danling"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "danling --help": [*danling, "--help"],
    }
    for name, command in commands.items():
        yield name, _text(*seconds(command, Path.cwd(), rounds))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_runs(Path(folder) / "experiments", size)
            yield (
                f"danling ls, {size} runs",
                _text(*seconds([*danling, "ls"], Path(folder), rounds)),
            )


def _text(wall: float, processor: float) -> str:
    return f"{wall:.2f} s, processor {processor:.2f} s"


def rows(quick: bool) -> Iterator[tuple[str, str]]:
    """The rows of the table of `python -m tests.benchmarks`."""
    yield from measure([1000] if quick else [1000, 20_000], 2 if quick else 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, text in measure(arguments.runs, arguments.rounds):
        print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    main()
