"""A signal reaches one process or all: they save the same step, and leave with the same code."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from danling.files.failpoints import set_failpoints
from tests.distributed.processes import Ended, leave, results, start, succeed, together, wait
from tests.distributed.runners import At, Regression
from tests.distributed.test_resume import interrupted, outcome, train
from tests.support.resume_harness import Setting

pytestmark = pytest.mark.distributed


def run_of(folder: Path) -> Path:
    (run,) = (path.parent for path in (folder / "experiments").glob("*/run.json"))
    return run


def status(folder: Path) -> str:
    text: str = json.loads((run_of(folder) / "run.json").read_text())["status"]
    return text


def saved_step(folder: Path) -> int:
    step: int = read_checkpoint(run_of(folder) / "checkpoints/latest.pth")["data"]["global_step"]
    return step


def send(number: int) -> Callable[[dl.AccelerateRunner], None]:
    def act(runner: dl.AccelerateRunner) -> None:
        os.kill(os.getpid(), number)

    return act


class Saves(dl.Callback):
    """The steps that were saved."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, runner: dl.AccelerateRunner, path: Path) -> None:
        self.steps.append(runner.global_step)


def training(folder: Path, hook: str, number: int, rank: int) -> None:
    class Once(At):
        def _act(self, runner: dl.AccelerateRunner, *args: Any) -> None:
            super()._act(runner, *args)
            if runner.global_step >= self.step:
                self.rank = -1

    signalled = Once(hook, send(number), rank=rank, step=5)
    saves = Saves()
    config = {"max_epochs": 4, "poll_interval": 3}
    runner = Regression(folder, config, callbacks=[signalled, saves], default_callbacks=True)
    try:
        runner.train()
    finally:
        assert len(set(saves.steps)) == len(saves.steps)  # none was saved twice
        leave(folder, [runner.global_step, runner.status])
        if runner.is_main_process:
            time.sleep(0.5)  # as Python may need to end; the launcher sends SIGTERM meanwhile


@pytest.mark.parametrize(
    ("hook", "number", "rank", "step"),
    [
        ("on_step", signal.SIGTERM, 1, 6),
        ("on_step", signal.SIGTERM, 0, 6),
        ("on_step", signal.SIGUSR1, 1, 6),
        ("on_step", signal.SIGINT, 0, 6),
        ("on_evaluate_batch_end", signal.SIGTERM, 1, 8),
        ("on_checkpoint", signal.SIGTERM, 1, 6),
        ("on_epoch_end", signal.SIGTERM, 1, 9),  # too late for this epoch, so with the next poll
    ],
)
def test_a_signal_to_one_rank_ends_all_at_the_same_saved_step(
    hook: str, number: int, rank: int, step: int, tmp_path: Path
) -> None:
    ended = together(2, training, tmp_path, hook, number, rank, folder=tmp_path)

    code = 130 if number == signal.SIGINT else 128 + number
    expected = "interrupted" if number == signal.SIGINT else "preempted"
    assert ended.codes == [code, code], ended.output
    assert results(tmp_path, 2) == [[step, expected], [step, expected]]
    assert (status(tmp_path), saved_step(tmp_path)) == (expected, step)


def on_a_full_disk(folder: Path, number: int, policy: Any) -> None:
    def fill_and_signal(runner: dl.AccelerateRunner) -> None:
        if runner.global_step == 5:
            set_failpoints(f"checkpoint.after_write=raise:{errno.ENOSPC}")
            send(number)(runner)

    checkpoint = ModelCheckpoint(every="2 steps", on_save_error=policy)
    signalled = At("on_step", fill_and_signal, rank=0, step=5)
    config = {"poll_interval": 2}
    runner = Regression(folder, config, callbacks=[checkpoint, signalled], default_callbacks=True)
    try:
        runner.train()
    finally:
        leave(folder, [runner.global_step, runner.status])


@pytest.mark.parametrize(
    ("size", "number", "policy"),
    [
        (1, signal.SIGTERM, "raise"),
        (2, signal.SIGTERM, "raise"),
        pytest.param(2, signal.SIGTERM, "warn", marks=pytest.mark.exhaustive),
        pytest.param(1, signal.SIGINT, "raise", marks=pytest.mark.exhaustive),
    ],
)
def test_a_save_that_fails_does_not_keep_the_scheduler_from_a_requeue(
    size: int, number: int, policy: str, tmp_path: Path
) -> None:
    ended = together(size, on_a_full_disk, tmp_path, number, policy, folder=tmp_path)

    code, expected = (130, "interrupted") if number == signal.SIGINT else (143, "preempted")
    assert ended.codes == [code] * size, ended.output
    assert results(tmp_path, size) == [[6, expected]] * size
    assert (status(tmp_path), saved_step(tmp_path)) == (expected, 4)
    assert "No space left on device" in ended.output


def signalled_in_set_up(folder: Path) -> None:
    trap = At("on_setup", send(signal.SIGTERM), rank=1, step=0)
    try:
        Regression(folder, callbacks=[trap], default_callbacks=True).train()
    finally:
        leave(folder, "left")


def test_a_signal_in_set_up_ends_all_before_the_first_step(tmp_path: Path) -> None:
    ended = together(2, signalled_in_set_up, tmp_path, folder=tmp_path)

    assert ended.codes == [143, 143], ended.output
    assert status(tmp_path) == "preempted"
    assert not list((run_of(tmp_path) / "checkpoints").glob("*.pth"))


def test_a_peer_that_dies_is_no_preemption(tmp_path: Path) -> None:
    """The launcher sends SIGTERM to the others then: nothing may be saved, the run has failed."""
    pids = start(2, slowly, tmp_path, output=tmp_path / "output.txt")
    wait_for(lambda: (tmp_path / "step-5").exists())

    os.kill(pids[1], signal.SIGKILL)
    ended = wait(pids, tmp_path / "output.txt")

    assert ended.codes[0] not in (0, 143), ended.output
    assert not ended.timed_out
    assert status(tmp_path) == "failed"
    assert saved_step(tmp_path) == 4  # at the end of the first epoch


def slowly(folder: Path) -> None:
    class Slow(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            (folder / f"step-{runner.global_step}").touch()
            time.sleep(0.1)

    Regression(folder, {"max_epochs": 9}, callbacks=[Slow()], default_callbacks=True).train()


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def saving_slowly(folder: Path, asynchronous: bool) -> None:
    set_failpoints("checkpoint.after_write=sleep:0.02")
    checkpoint = ModelCheckpoint(every="1 step", asynchronous=asynchronous)
    slow = At("on_step", lambda runner: (folder / f"step-{runner.global_step}").touch(), rank=0)
    callbacks: list[dl.Callback] = [checkpoint, slow]
    Regression(folder, {"max_epochs": 99}, callbacks=callbacks, default_callbacks=True).train()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ten_presses_of_ctrl_c_damage_nothing(asynchronous: bool, tmp_path: Path) -> None:
    pids = start(1, saving_slowly, tmp_path, asynchronous, output=tmp_path / "output.txt")
    wait_for(lambda: (tmp_path / "step-5").exists())

    for _ in range(10):
        os.kill(pids[0], signal.SIGINT)
        time.sleep(0.005)
    ended = wait(pids, tmp_path / "output.txt")

    assert ended.codes == [130], ended.output
    assert status(tmp_path) == "interrupted"
    assert saved_step(tmp_path) >= 3


def test_a_terminal_that_is_closed_ends_the_process_as_ever(tmp_path: Path) -> None:
    pids = start(1, slowly, tmp_path, output=tmp_path / "output.txt")
    wait_for(lambda: (tmp_path / "step-9").exists())

    os.kill(pids[0], signal.SIGHUP)
    ended = wait(pids, tmp_path / "output.txt")

    assert ended.codes == [-signal.SIGHUP]
    assert saved_step(tmp_path) == 8


# From outside, at any moment

MOMENTS = 20


def train_slowly(folder: Path) -> None:
    """Train so that most of the time is spent in training."""

    class Slow(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            time.sleep(0.02)

        def on_evaluate_batch_end(self, runner: dl.AccelerateRunner, *_: Any) -> None:
            time.sleep(0.02)

        def on_save(self, runner: dl.AccelerateRunner, path: Path) -> None:
            time.sleep(0.02)

    train(folder, Setting(every="1 epoch"), callbacks=[Slow()])


def signalled(folder: Path, delay: float, victims: list[int]) -> Ended:
    """Start a training, and send SIGTERM after a while to some ranks."""
    pids = start(2, train_slowly, folder, output=folder / "output.txt")
    time.sleep(delay)
    for rank in victims:
        os.kill(pids[rank], signal.SIGTERM)
    return wait(pids, folder / "output.txt")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What comes of a training that nobody disturbs, and how many seconds it takes."""
    root = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    succeed(2, train_slowly, root, folder=root)
    return outcome(root, 2), time.monotonic() - begun


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=[] if moment % 5 == 2 else pytest.mark.exhaustive)
        for moment in range(MOMENTS)
    ],
)
def test_sigterm_at_any_moment_loses_no_step(
    moment: int, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    drawn = random.Random(moment)
    delay = seconds * (moment + drawn.random()) / MOMENTS
    victims = [[0], [1], [0, 1]][moment % 3]

    ended = signalled(tmp_path, delay, victims)

    is_over = (tmp_path / "outcome-1.json").exists()
    steps = {
        rank: len(set(path.read_text().splitlines()))
        for rank in (0, 1)
        if (path := tmp_path / f"seen-2-{rank}.jsonl").exists()
    }
    if steps:
        assert saved_step(tmp_path) == steps[0] == steps[1], ended.output
        assert all(code in ((0, 143, -15) if is_over else (143,)) for code in ended.codes), ended
    else:
        assert 0 not in ended.codes
    if is_over:
        assert without_stops(outcome(tmp_path, 2)) == without_stops(expected)
    elif steps and status(tmp_path) == "finished":  # the signal came while the run was closed
        assert saved_step(tmp_path) == expected["steps"]
    else:
        result = interrupted(tmp_path, 2, Setting(every="1 epoch"))
        assert without_stops(result) == without_stops(expected)


def without_stops(result: dict[str, Any]) -> dict[str, Any]:
    """Without the result of an epoch that was cut, and the row of the log at that point."""
    results = [row for row in result["results"] if "val" in row]
    return {**result, "results": results, "metrics": None}
