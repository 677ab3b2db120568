"""A process that reads data fails, dies or hangs: the run says so, and goes on exactly later."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

from danling.callbacks import LambdaCallback, ModelCheckpoint, Preemption
from danling.data.loader import with_notes
from danling.errors import DataError
from tests.support.resume_runs import (
    STEPS,
    Noisy,
    Runner,
    log,
    make_runner,
    record,
    trained,
    weights,
)

FAULTS = {
    "raises": "ValueError: Caught ValueError in DataLoader worker process",
    "dies": "DataLoader worker",
    "leaves": "DataLoader worker",
    "hangs": "DataLoader timed out after 1 second",
}
THINNED = {("raises", False), ("dies", False), ("hangs", True)}


class Faulty(Noisy):
    """Does something bad at one sample, once, when the file `armed` is there."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        armed = Path("armed")
        if index == 5 and armed.exists():
            armed.unlink()
            self.fail()
        return super().__getitem__(index)

    def fail(self) -> None:
        if self.fault == "raises":
            raise ValueError("sample 5 is bad")
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "leaves":
            os._exit(3)
        time.sleep(1000)


def make(fault: str, persistent: bool) -> Runner:
    """A run that saves each step, and whose second epoch meets the bad sample."""

    def arm(runner: Runner) -> None:
        if runner.epoch == 1:
            Path("armed").touch()

    workers = {"num_workers": 2, "timeout": 1, "persistent_workers": persistent}
    options = {"batch_size": 4, "train": workers}
    callbacks = [ModelCheckpoint("1 step"), Preemption(), LambdaCallback(on_epoch_start=arm)]
    runner = make_runner(callbacks, dataloader=options)
    runner.datasets["train"] = Faulty(fault)
    return runner


def failed(fault: str, persistent: bool) -> tuple[Path, str]:
    """The directory and the error, as it is printed, of a run that failed."""
    runner = make(fault, persistent)
    try:
        runner.train()
    except Exception as error:
        notes = getattr(error, "__notes__", ())
        return runner.dir, "\n".join([f"{type(error).__name__}: {error}", *notes])
    raise AssertionError("it did not fail")


@pytest.fixture(autouse=True)
def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch waits this long for a worker to end by itself before it ends it."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


SWEEP = [
    pytest.param(
        *case, marks=() if case in THINNED else pytest.mark.exhaustive, id="-".join(map(str, case))
    )
    for case in product(FAULTS, [False, True])
]


@pytest.mark.parametrize(("fault", "persistent"), SWEEP)
def test_a_worker_that_fails_ends_the_run_which_goes_on_exactly(fault: str, persistent: bool):
    start = time.monotonic()

    directory, error = failed(fault, persistent)
    gc.collect()

    assert FAULTS[fault] in error
    if fault in ("raises", "hangs"):  # a death may be noticed anywhere
        assert "of epoch 1 of 'train' (Faulty, 2 workers) was read" in error
    assert time.monotonic() - start < 500  # half of what a worker that hangs takes
    assert multiprocessing.active_children() == []

    again, whole = trained(resume=str(directory)), trained()
    assert [launch["exit_reason"] is None for launch in record(again)["launches"]] == [False] * 2
    assert "failed after" in log(again)
    assert again.resume_report is not None
    assert again.resume_report["exact"]
    assert again.resume_report["global_step"] >= STEPS
    assert list(again.checkpoint_dir.glob(".tmp.*")) == []
    assert weights(again) == weights(whole)
    assert again.results == whole.results


def test_the_status_of_a_run_with_a_dead_worker_is_failed():
    runner = make("dies", persistent=False)

    with pytest.raises(Exception, match="DataLoader worker"):
        runner.train()

    assert record(runner)["status"] == "failed"
    assert "DataLoader worker" in record(runner)["reason"]


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_a_broken_pipe_is_the_end_of_a_worker_unless_the_dataset_raised_it(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    def broken(message: str) -> Iterator[str]:
        yield "a"
        raise kind(message)

    monkeypatch.setattr("danling.data.loader._NOTICING", 0.0)
    with pytest.raises(DataError, match="a DataLoader worker has ended while batch 1 of 'train'"):
        list(with_notes(broken("reset by peer"), "'train'", first=0))
    with pytest.raises(kind, match="Caught"):
        list(with_notes(broken("Caught it in DataLoader worker process 0."), "'train'", first=0))


def test_an_error_names_the_batch_that_was_read():
    def broken() -> Iterator[str]:
        yield from "ab"
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as caught:
        list(with_notes(broken(), "epoch 3 of 'val' (Images, 2 workers)", first=7))

    assert caught.value.__notes__ == [
        "while batch 9 of epoch 3 of 'val' (Images, 2 workers) was read"
    ]


PARENT = """
import os, sys
from pathlib import Path
from danling.data.readers import WorkerInit

init = WorkerInit(None)
parent = os.getpid()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    while os.getppid() == parent:  # it is killed before the worker has done anything
        pass
    init(0)
    Path(sys.argv[1]).touch()
    os._exit(0)
while True:
    os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_worker_whose_parent_was_killed_as_it_forked_ends(tmp_path: Path):
    lived = tmp_path / "lived"
    command = [sys.executable, "-c", PARENT, str(lived)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()

    assert parent.stdout.read() == ""  # until the worker, which has the pipe too, is gone
    parent.wait()
    parent.stdout.close()

    assert not lived.exists()


STUCK = """
import os, signal
from danling.data.readers import end_with

parent = os.getpid()
if os.fork() == 0:
    end_with(parent, ask_kernel=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print(os.getpid(), flush=True)
    while True:
        signal.pause()
while True:
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_worker_in_the_middle_of_something_ends_with_its_parent():
    command = [sys.executable, "-c", STUCK]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()

    assert parent.stdout.read() == ""  # the worker had the pipe too, and is gone
    parent.wait()
    parent.stdout.close()


def environment() -> dict[str, str]:
    """The environment of a process that imports this package from wherever it lies."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
