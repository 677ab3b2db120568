"""Several runners in one process, and processes that are started from within one."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from danling.run.lock import is_locked
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression

pytestmark = pytest.mark.distributed


def footprint() -> dict[str, object]:
    """What a run must not leave behind in its process."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    return {
        "handlers": [signal.getsignal(number) for number in numbers],
        "root": list(logging.root.handlers),
        "loggers": [
            handler for logger in loggers for handler in logger.handlers if "danling" in logger.name
        ],
        "threads": {thread.name for thread in threading.enumerate()},
        "files": sorted(os.readlink(path) for path in open_files()),
    }


def open_files() -> list[str]:
    paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for path in paths if os.path.exists(path) and "/experiments/" in os.readlink(path)]


def test_two_runners_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    before = footprint()

    first = Regression(tmp_path, {"run_name": "first"}, default_callbacks=True)
    second = Regression(tmp_path, {"run_name": "second"}, default_callbacks=True)
    first.train()
    second.train()
    first.train()
    first.config.max_epochs = 3
    first.train()

    assert footprint() == before
    assert (first.epoch, second.epoch) == (3, 2)
    assert first.dir != second.dir
    assert not is_locked(first.dir)
    assert not is_locked(second.dir)


def test_runners_of_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    plain = Regression(tmp_path)
    mixed = Regression(tmp_path, {"accelerate": {"mixed_precision": "bf16"}})

    mixed.train()
    plain.train()

    inputs = torch.zeros(1, 4)
    assert plain.accelerator.mixed_precision == "no"
    assert mixed.accelerator.mixed_precision == "bf16"
    with plain.autocast():
        assert (inputs @ inputs.T).dtype == torch.float32
    with mixed.autocast():
        assert (inputs @ inputs.T).dtype == torch.bfloat16


def training_twice(folder: Path) -> None:
    groups = []
    for name in ("first", "second", "third"):
        runner = Regression(folder, {"run_name": name}, default_callbacks=True)
        runner.train()
        runner.config.max_epochs = 3
        runner.train()
        runner.evaluate("val")
        epochs = runner.epoch
        del runner
        gc.collect()
        groups.append(len(dist.distributed_c10d._world.pg_map))
    leave(folder, [groups, epochs])


def test_runners_of_several_processes_leave_no_groups_behind(tmp_path: Path) -> None:
    succeed(2, training_twice, tmp_path, folder=tmp_path)

    for groups, epochs in results(tmp_path, 2):
        assert epochs == 3
        assert groups == [groups[0]] * 3


NOTEBOOK = """
from pathlib import Path
import sys

def train(folder):
    from tests.distributed.runners import Regression
    runner = Regression(Path(folder), default_callbacks=True)
    assert runner.world_size == 2
    runner.train()
    if runner.is_main_process:
        print("trained on", runner.world_size, flush=True)

if __name__ == "__main__":
    from accelerate import debug_launcher
    debug_launcher(train, (sys.argv[1],), num_processes=2)
    debug_launcher(train, (sys.argv[1],), num_processes=2)
"""


@pytest.mark.exhaustive
def test_the_launcher_of_notebooks_starts_processes_twice(tmp_path: Path) -> None:
    """`debug_launcher` is `notebook_launcher` for CPUs: it starts processes from a function."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK)

    finished = subprocess.run(
        [sys.executable, "notebook.py", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("trained on 2") == 2
    assert len(list((tmp_path / "experiments").glob("*/run.json"))) == 2
