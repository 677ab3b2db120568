"""How long training stands still for a checkpoint, against `torch.save` and `dcp.save` with fsync.

    python -m tests.benchmarks.bench_save [--rounds 7] [--megabytes 16 256 2048] [--directory D]

All ways write the same values to the same disk. Their rounds are interleaved, so that a slow moment
of the machine hits all of them, and medians are compared. Between two background saves training has
the time to let the write end. `a plain write` is the disk's own limit: bytes and an fsync.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from danling.callbacks import ModelCheckpoint
from danling.callbacks.run_directory import RunDirectory
from danling.checkpoint.sharded.dcp import split
from danling.checkpoint.sharded.state import write_shards
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.runner.accelerate import AccelerateRunner

Times = dict[str, list[float]]
BASES = {"torch.save + fsync": ("sync", "async, whole"), "torch.save": ("async",)}
NAMES = {
    "sync": "`ModelCheckpoint()`, durable when it returns",
    "async": "`ModelCheckpoint(asynchronous=True)`, while training stands still",
    "async, whole": "the same, until it is durable",
}


def make_runner(root: Path, megabytes: int, checkpoint: ModelCheckpoint) -> AccelerateRunner:
    """A runner whose checkpoint is dominated by weights; nothing but it is saved."""
    layers = [nn.Linear(1024, 1024, bias=False) for _ in range(megabytes // 4)]
    return AccelerateRunner(
        {"project_root": str(root), "seed": 0, "max_steps": 1, "accelerate": {"cpu": True}},
        model=nn.Sequential(*layers),
        optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
        callbacks=[RunDirectory(), checkpoint],
        default_callbacks=False,
    )


def seconds(work: Callable[[], object]) -> float:
    """The seconds of some work, without what earlier work has left for the disk to do."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(root: Path, megabytes: int, rounds: int) -> Times:
    """Seconds for which each way holds up the training, and of a background save as a whole."""
    times: Times = {
        name: [] for name in ("a plain write", "torch.save", "torch.save + fsync", "sync", "async")
    }
    times["async, whole"] = []
    checkpoints = {
        "sync": ModelCheckpoint(None),
        "async": ModelCheckpoint(None, asynchronous=True),
    }
    runners = {name: make_runner(root, megabytes, c) for name, c in checkpoints.items()}
    for name, runner in runners.items():
        runner.__enter__()
        checkpoints[name].on_train_start(runner)
    state = runners["sync"].state_dict()
    for number in range(rounds + 2):  # the first ones warm up: the second of them takes memory over
        row = {"a plain write": seconds(lambda: written(root, megabytes))}
        row["torch.save"] = seconds(lambda: plain(state, root / "plain.pth", sync=False))
        row["torch.save + fsync"] = seconds(lambda: plain(state, root / "synced.pth", sync=True))
        for name, runner in runners.items():
            runner.counters.global_step += 1
            row[name] = seconds(partial(checkpoints[name]._save, runner, {"latest": {}}))
        start = time.perf_counter()
        checkpoints["async"]._deliver(runners["async"], wait=True)
        row["async, whole"] = row["async"] + time.perf_counter() - start
        for name, value in row.items() if number > 1 else ():
            times[name].append(value)
    for runner in runners.values():
        runner.__exit__(None, None, None)
    return times


def written(root: Path, megabytes: int) -> None:
    """What the disk takes for the bytes alone."""
    block = memoryview(bytearray(1 << 22))
    with open(root / "bytes", "wb", buffering=0) as file:
        for _ in range(megabytes // 4):
            file.write(block)
        os.fsync(file.fileno())


def plain(state: Any, path: Path, *, sync: bool) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def measure_sharded(root: Path, megabytes: int, rounds: int) -> Times:
    """Seconds of `dcp.save` with fsync, and of a checkpoint in shards that is committed."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    times: Times = {"dcp.save + fsync": [], "in shards": []}
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of `no_dist`
    with group(root):
        mesh = init_device_mesh("cpu", (1,))
        model = {
            f"{number}.weight": distribute_tensor(torch.randn(1024, 1024), mesh, [Shard(0)])
            for number in range(megabytes // 4)
        }
        store = CheckpointStore(root / "checkpoints")

        def by_dcp(number: int) -> None:
            writer = FileSystemWriter(root / f"dcp-{number}", sync_files=True)
            save({"model": model}, storage_writer=writer, no_dist=True)
            shutil.rmtree(root / f"dcp-{number - 2}", ignore_errors=True)

        def ours(number: int) -> None:
            head, parts = split({"model": model})
            shards = write_shards(World(), store, number, parts)
            store.commit(head, ["latest"], global_step=number, epoch=0, shards=shards)

        for number in range(1, rounds + 2):
            row = [seconds(partial(way, number)) for way in (by_dcp, ours)]
            for name, value in zip(times, row, strict=True) if number > 1 else ():
                times[name].append(value)
    return times


@contextmanager
def group(root: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compared(times: Times, base: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each way as a multiple of another, round by round."""
    for name, title in names.items():
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        yield title, f"{statistics.median(ratios):.2f} ({spread}) times {base}"


def rows_of(megabytes: int, rounds: int, directory: Path | None) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        times = measure(Path(folder), megabytes, rounds)
    for name in ("a plain write", "torch.save + fsync"):
        middle = statistics.median(times[name])
        yield f"{megabytes} MB: {name}", f"{middle:.3f} s, {megabytes / middle:.0f} MB/s"
    for base, names in BASES.items():
        for title, value in compared(times, base, {name: NAMES[name] for name in names}):
            yield f"{megabytes} MB: {title}", value
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        times = measure_sharded(Path(folder), megabytes, rounds)
    for title, value in compared(times, "dcp.save + fsync", {"in shards": "in shards, committed"}):
        yield f"{megabytes} MB: {title}", value


def rows(quick: bool) -> Iterator[tuple[str, str]]:
    """The rows of each size."""
    for megabytes in (16, 64) if quick else (16, 256, 2048):
        yield from rows_of(megabytes, 3 if quick else 7, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[16, 256, 2048])
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    for megabytes in arguments.megabytes:
        for name, value in rows_of(megabytes, arguments.rounds, arguments.directory):
            print(f"{name:80} {value}")


if __name__ == "__main__":
    main()
