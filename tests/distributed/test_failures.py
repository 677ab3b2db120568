"""One process fails: all end, with an exit code, in time, and nothing is half written."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.checkpoint import reading
from danling.checkpoint.reading import read_checkpoint
from danling.files.failpoints import set_failpoints
from tests.distributed.processes import leave, results, start, succeed, together, wait
from tests.distributed.runners import At, Regression, die, fail, freeze

pytestmark = pytest.mark.distributed

STEP_OF_FAILURE = 6


class InTime(Regression):
    """Waits ten seconds for a process that is alive and does not come."""

    def make_accelerator(self) -> Accelerator:
        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=10))
        return Accelerator(cpu=True, kwargs_handlers=[limit])


def training(folder: Path, hook: str, failure: Callable[..., None], rank: int) -> None:
    trap = At(hook, failure, rank=rank, step=STEP_OF_FAILURE)
    runner = InTime(
        folder, callbacks=[ModelCheckpoint(every="1 step"), trap], default_callbacks=True
    )
    assert runner.world_size == 2
    runner.train()


def run_of(folder: Path) -> Path:
    (run,) = (path for path in (folder / "experiments").iterdir() if path.is_dir())
    return run


def status(folder: Path) -> str:
    text: str = json.loads((run_of(folder) / "run.json").read_text())["status"]
    return text


def saved_steps(folder: Path) -> list[int]:
    """The step of every checkpoint, each of which is whole."""
    files = sorted((run_of(folder) / "checkpoints").glob("*.pth"))
    assert not [path for path in files[0].parent.iterdir() if path.name.startswith(".tmp")]
    return sorted({read_checkpoint(path)["data"]["global_step"] for path in files})


# The steps that are saved when step 6 or what follows it fails; the best one is the fourth.
HOOKS = {
    "on_step": [4, 5],
    "on_checkpoint": [4, 5, 6],
    "on_save": [4, 5, 6],
    "on_evaluate_batch_end": [4, 7, 8],
    "on_epoch_end": [4, 7, 8],
    "on_train_end": [4, 8],
}


def thinned(cases: Iterable[tuple[str, int]], *kept: tuple[str, int]) -> list[Any]:
    """All cases, of which only some run by default."""
    marks: dict[bool, Any] = {True: [], False: pytest.mark.exhaustive}
    return [pytest.param(*case, marks=marks[case in kept]) for case in cases]


@pytest.mark.parametrize(
    ("hook", "rank"),
    thinned(
        product(HOOKS, [0, 1]),
        ("on_step", 1),
        ("on_checkpoint", 0),
        ("on_evaluate_batch_end", 1),
        ("on_train_end", 1),
    ),
)
def test_an_exception_on_one_rank_ends_all_with_its_traceback_first(
    hook: str, rank: int, tmp_path: Path
) -> None:
    ended = together(2, training, tmp_path, hook, fail, rank, folder=tmp_path)

    assert ended.codes[rank] == 1, ended.output
    assert ended.codes[1 - rank] != 0
    assert not ended.timed_out
    first, _, _ = ended.output[ended.output.index("Traceback") :].partition("[rank")
    assert f"ZeroDivisionError: on purpose, on rank {rank}" in first, ended.output
    assert status(tmp_path) == "failed"
    assert saved_steps(tmp_path) == HOOKS[hook]


@pytest.mark.parametrize(
    ("hook", "rank"),
    thinned(
        product(["on_step", "on_evaluate_batch_end", "on_checkpoint"], [0, 1]),
        ("on_step", 0),
        ("on_evaluate_batch_end", 1),
    ),
)
def test_a_killed_rank_ends_the_others_and_leaves_whole_checkpoints(
    hook: str, rank: int, tmp_path: Path
) -> None:
    ended = together(2, training, tmp_path, hook, die, rank, folder=tmp_path)

    assert ended.codes[rank] == -signal.SIGKILL
    assert ended.codes[1 - rank] != 0
    assert not ended.timed_out
    assert status(tmp_path) == ("running" if rank == 0 else "failed")
    assert saved_steps(tmp_path) == HOOKS[hook]


@pytest.mark.parametrize(
    "hook",
    [
        "on_checkpoint",
        pytest.param("on_step", marks=pytest.mark.exhaustive),
        pytest.param("on_evaluate_batch_end", marks=pytest.mark.exhaustive),
    ],
)
def test_a_frozen_rank_is_given_up_after_the_time_out(hook: str, tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    pids = start(2, training, tmp_path, hook, freeze, 1, output=output)

    pid, code = os.waitpid(pids[0], 0)
    os.kill(pids[1], signal.SIGKILL)
    os.waitpid(pids[1], 0)

    assert (pid, os.waitstatus_to_exitcode(code)) == (pids[0], 1)
    assert status(tmp_path) == "failed"
    assert saved_steps(tmp_path) == HOOKS[hook]


def freezing(folder: Path) -> None:
    runner = Regression(folder, callbacks=[At("on_step", freeze, rank=1, step=5)])
    runner.train()
    leave(folder, runner.global_step)


def test_a_rank_that_is_frozen_for_a_while_goes_on(tmp_path: Path) -> None:
    trap = tmp_path / "output.txt"
    pids = start(2, freezing, tmp_path, output=trap)
    for _ in range(8):  # it freezes at every step from the fifth on
        time.sleep(0.5)
        os.kill(pids[1], signal.SIGCONT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "result-1.json").exists():
        os.kill(pids[1], signal.SIGCONT)
        time.sleep(0.1)

    ended = wait(pids, trap)

    assert (ended.codes, results(tmp_path, 2)) == ([0, 0], [8, 8])


# Saving


class SlowToClose(dl.Callback):
    """Keeps the main process busy after an error, so that its traceback comes late."""

    def on_exception(self, runner: dl.AccelerateRunner, error: BaseException) -> None:
        time.sleep(1.0 if runner.is_main_process else 0.0)


def saving(folder: Path, failpoints: str, policy: Any, asynchronous: bool) -> None:
    if os.environ["RANK"] == "0":
        set_failpoints(failpoints)
    checkpoint = ModelCheckpoint(every="1 step", on_save_error=policy, asynchronous=asynchronous)
    runner = InTime(folder, callbacks=[checkpoint, SlowToClose()], default_callbacks=True)
    try:
        runner.train()
    finally:
        leave(folder, [runner.global_step, runner.status])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_on_rank_0_is_the_same_error_on_all_ranks(
    asynchronous: bool, tmp_path: Path
) -> None:
    point = f"checkpoint.after_write=raise:{errno.ENOSPC}@3"

    ended = together(2, saving, tmp_path, point, "raise", asynchronous, folder=tmp_path)

    assert ended.codes[0] == 1, ended.output
    assert ended.codes[1] != 0
    assert "No space left on device" in ended.output
    assert ended.output.index("[rank 0] Traceback") < (ended.output + "[rank 1]").index("[rank 1]")
    assert status(tmp_path) == "failed"
    assert set(saved_steps(tmp_path)) <= {1, 2, 4}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_fails_may_be_a_warning_on_all_ranks(
    asynchronous: bool, tmp_path: Path
) -> None:
    point = f"checkpoint.after_write=raise:{errno.ENOSPC}@3"

    ended = together(2, saving, tmp_path, point, "warn", asynchronous, folder=tmp_path)

    assert [step for step, _ in results(tmp_path, 2)] == [8, 8], ended.output
    assert ended.output.count("save failed") == 1
    assert ended.codes[0] == 1  # at the end it is told


def test_a_rank_that_is_killed_while_it_saves_leaves_whole_checkpoints(tmp_path: Path) -> None:
    point = "checkpoint.after_write=kill@5"

    ended = together(2, saving, tmp_path, point, "raise", False, folder=tmp_path)

    assert ended.codes[0] == -signal.SIGKILL
    assert ended.codes[1] != 0
    files = (run_of(tmp_path) / "checkpoints").glob("*.pth")
    assert {read_checkpoint(path)["data"]["global_step"] for path in files} == {3, 4}


def rotating(folder: Path, failpoints: str) -> None:
    if os.environ["RANK"] == "0":
        set_failpoints(failpoints)
    checkpoint = ModelCheckpoint(every="1 step", keep_every="1 step", keep_last=1)
    InTime(folder, callbacks=[checkpoint], default_callbacks=True).train()


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("kill", -signal.SIGKILL),
        pytest.param(f"raise:{errno.EIO}", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_rank_that_fails_while_it_deletes_old_checkpoints_leaves_whole_ones(
    action: str, code: int, tmp_path: Path
) -> None:
    point = f"checkpoint.before_unlink={action}@3"

    ended = together(2, rotating, tmp_path, point, folder=tmp_path)

    assert ended.codes[0] == code, ended.output
    assert ended.codes[1] != 0
    assert max(saved_steps(tmp_path)) == 4


# Loading


def trained(folder: Path) -> Path:
    """A checkpoint of two processes."""
    succeed(2, saving, folder, "", "raise", False, folder=folder)
    return run_of(folder) / "checkpoints" / "latest.pth"


def loading(folder: Path, path: Path, blind: bool, large: bool) -> None:
    if large:
        reading.SENT = 0
    if blind and os.environ["RANK"] == "1":
        hidden = folder / "hidden"
        hidden.mkdir()
        path = hidden / path.name  # what rank 1 sees of the shared directory
        os.chdir(hidden)
    runner = InTime(folder)
    runner.load_checkpoint(path)
    leave(folder, [runner.global_step, [p.sum().item() for p in runner.model.parameters()]])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("blind", [False, True])
def test_a_checkpoint_is_found_by_rank_0_and_the_same_on_all(
    blind: bool, large: bool, tmp_path: Path
) -> None:
    path = trained(tmp_path)

    succeed(2, loading, tmp_path, path, blind, large, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[0] == 8


def test_a_damaged_checkpoint_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    path = trained(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])

    ended = together(2, loading, tmp_path, path, False, False, folder=tmp_path, terminates=False)

    assert ended.codes == [1, 1]
    assert ended.output.count("its end is missing or was changed") >= 2


def resuming(folder: Path) -> None:
    runner = InTime(folder, {"resume": "auto"}, default_callbacks=True)
    with runner:
        leave(folder, [runner.global_step, [p.sum().item() for p in runner.model.parameters()]])
        runner.stop("it has been loaded")


def test_all_ranks_fall_back_to_the_checkpoint_that_rank_0_found_whole(tmp_path: Path) -> None:
    together(2, training, tmp_path, "on_step", fail, 1, folder=tmp_path)
    latest = run_of(tmp_path) / "checkpoints" / "latest.pth"
    latest.write_bytes(latest.read_bytes()[:-100])

    succeed(2, resuming, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[0] == 4


def stopping_early(folder: Path) -> None:
    runner = InTime(folder, {"max_epochs": 3, "resume": "auto"}, default_callbacks=True)
    runner.callbacks.append(At("on_epoch_end", fail, rank=0, step=8))
    runner.train()


def resuming_with(folder: Path, failure: Callable[..., None]) -> None:
    runner = InTime(
        folder,
        {"resume": "auto", "max_epochs": 3},
        callbacks=[At("on_load", failure, rank=1, step=0)],
        default_callbacks=True,
    )
    runner.train()


@pytest.mark.parametrize("failure", [fail, pytest.param(die, marks=pytest.mark.exhaustive)])
def test_a_failure_of_one_rank_while_it_resumes_ends_all(
    failure: Callable[..., None], tmp_path: Path
) -> None:
    together(2, stopping_early, tmp_path, folder=tmp_path)

    ended = together(2, resuming_with, tmp_path, failure, folder=tmp_path)

    assert 0 not in ended.codes, ended.output
    assert status(tmp_path) == "failed"
    if failure is fail:
        first, _, _ = ended.output[ended.output.index("Traceback") :].partition("[rank")
        assert "ZeroDivisionError: on purpose, on rank 1" in first


@pytest.mark.exhaustive
def test_a_rank_that_freezes_while_it_resumes_is_given_up(tmp_path: Path) -> None:
    together(2, stopping_early, tmp_path, folder=tmp_path)
    pids = start(2, resuming_with, tmp_path, freeze, output=tmp_path / "output.txt")

    _, code = os.waitpid(pids[0], 0)
    os.kill(pids[1], signal.SIGKILL)
    os.waitpid(pids[1], 0)

    assert os.waitstatus_to_exitcode(code) == 1
    assert status(tmp_path) == "failed"


class Witness(dl.Callback):
    """Writes down what it hears of the end."""

    def on_exception(self, runner: dl.AccelerateRunner, error: BaseException) -> None:
        leave(Path(runner.config.project_root).parent, f"{type(error).__name__}: {error}")

    def on_teardown(self, runner: dl.AccelerateRunner) -> None:
        torch.zeros(1)


def witnessed(folder: Path, hook: str, rank: int) -> None:
    failing = At(hook, fail, rank=rank, step=0)
    InTime(folder, callbacks=[failing, Witness()], default_callbacks=True).train()


SELDOM = ("on_exception", "on_load")  # they fire only when something else has happened
EVERY_HOOK = [name for name in dl.callback.HOOKS if name not in SELDOM and "predict" not in name]


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("hook", EVERY_HOOK)
def test_an_exception_in_any_hook_of_one_rank_ends_all(
    hook: str, rank: int, tmp_path: Path
) -> None:
    ended = together(2, witnessed, tmp_path, hook, rank, folder=tmp_path)

    assert 0 not in ended.codes, ended.output
    assert not ended.timed_out
    first, _, _ = ended.output[ended.output.index("Traceback") :].partition("[rank")
    assert f"on purpose, on rank {rank}" in first, ended.output
