"""How fast DanLing is, against loops written by hand and against every peer that is installed.

    python -m tests.benchmarks [--quick] [--json FILE] [--only bare full growth]

Wants an idle machine. The peers are in the extra `[benchmark]`; those that are not installed are
left out, with a word. `docs/performance.md` explains the table and its limits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch

from tests.benchmarks import bench_runs, bench_save, bench_tensorboard, breakdown, growth
from tests.benchmarks.race import race, table

STEPS = 1000
ROWS = [breakdown.rows, *growth.ALL, bench_save.rows, bench_tensorboard.rows, bench_runs.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--only", nargs="+", choices=("bare", "full", "growth"), default=None)
    arguments = parser.parse_args()
    wanted = arguments.only or ("bare", "full", "growth")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries of others, and not about speed
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    numbers: dict[str, Any] = {"machine": machine()}
    print("\n".join(f"{name}: {value}" for name, value in numbers["machine"].items()))
    rounds, epochs = (2, 2) if arguments.quick else (7, 3)
    for kind, title in (
        ("bare", "A step, bare"),
        ("full", "A step, with bar, TensorBoard, validation and two checkpoints per epoch"),
    ):
        if kind in wanted:
            rows = race(features=kind == "full", rounds=rounds, steps=STEPS, epochs=epochs)
            numbers[kind] = rows
            print(table(title, rows), flush=True)
    if "growth" in wanted:
        numbers["growth"] = {}
        print("\n### Everything else\n\n| | |\n| --- | --- |")
        for measure in ROWS:
            for name, value in measure(arguments.quick):
                numbers["growth"][name] = value
                print(f"| {name} | {value} |", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, str]:
    """On what this was measured; a load above 1 means that the numbers are worth little."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
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
