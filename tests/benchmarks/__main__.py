"""How fast DanLing is, against loops written by hand and against every peer that is installed.

    python -m tests.benchmarks [--quick] [--json FILE] [--only PART ...]

It prints the tables of `docs/performance.md`, and writes the numbers as JSON. It wants an idle
machine. The peers are in the extra `[benchmark]`; those that are not installed are left out, with a
word. The page explains the tables and their limits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch

from tests.benchmarks import (
    bench_runs,
    bench_save,
    bench_tensorboard,
    breakdown,
    growth,
    reading,
    resuming,
)
from tests.benchmarks.race import race, summary, table
from tests.benchmarks.tasks import REALISTIC, SMALL, Task

KINDS = {"bare": "bare", "everything": "with bar, TensorBoard, validation and two checkpoints"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries of others, and not about speed
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    numbers: dict[str, Any] = {"schema": 1, "quick": arguments.quick, "machine": machine()}
    print("\n".join(f"{name}: {value}" for name, value in numbers["machine"].items()))
    for part in arguments.only:
        numbers[part] = PARTS[part](arguments.quick)
        if arguments.json is not None:  # after each part: the whole takes an hour
            arguments.json.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")


def steps(quick: bool) -> dict[str, Any]:
    """A step of the smallest work on each kind of data."""
    options = {"rounds": 2, "steps": 200, "epochs": 1} if quick else {}
    return raced("A step", SMALL, **{"rounds": 7, "steps": 1000, "epochs": 3} | options)


def realistic(quick: bool) -> dict[str, Any]:
    """A step of work of a usual size, read by two workers."""
    options = {"rounds": 1, "steps": 3, "epochs": 1} if quick else {}
    return raced(
        "Work of a usual size", REALISTIC, **{"rounds": 3, "steps": 20, "epochs": 2} | options
    )


def raced(name: str, tasks: list[Task], **options: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, title in KINDS.items():
        found[kind] = {}
        for task in tasks:
            rows = race(task, features=kind == "everything", **options)
            found[kind][task.name] = rows
            print(table(f"{task.name}, {title}", rows), flush=True)
        print(summary(f"{name}, {title}", found[kind]), flush=True)
    return found


def reads(quick: bool) -> dict[str, Any]:
    """Reading and evaluation, by hand and with DanLing."""
    rows = reading.rows(quick)
    print("\n### Reading and evaluating a batch\n")
    print("| | by hand | DanLing | times by hand |\n| --- | --- | --- | --- |")
    for name, measures in rows.items():
        for what, row in measures.items():
            hand, ours, ratio = (row[k] for k in ("us_by_hand", "us_danling", "times_by_hand"))
            print(
                f"| {what}: {name} | {hand['median']:.0f} µs | {ours['median']:.0f} µs | "
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) |",
                flush=True,
            )
    return rows


def listed(title: str, *measures: Callable[[bool], Any]) -> Callable[[bool], dict[str, Any]]:
    """A part that is a list of names and values."""

    def part(quick: bool) -> dict[str, Any]:
        print(f"\n### {title}\n\n| | |\n| --- | --- |")
        found = {}
        for measure in measures:
            for name, value in measure(quick):
                found[name] = value
                print(f"| {name} | {value} |", flush=True)
        return found

    return part


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "steps": steps,
    "realistic": realistic,
    "reads": reads,
    "saves": listed("Saves", bench_save.rows),
    "resume": listed("Resume: time and memory", resuming.rows),
    "runs": listed("The command over many runs", bench_runs.rows),
    "growth": listed("Everything else", breakdown.rows, *growth.ALL, bench_tensorboard.rows),
}


def machine() -> dict[str, str]:
    """On what this was measured; a load above 1 means that the numbers are worth little."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
