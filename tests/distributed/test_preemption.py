"""A signal reaches one process or all: they save the same step, and leave with the same code."""

from __future__ import annotations

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
from danling.validation import read_checkpoint
from tests.distributed.processes import Ended, leave, results, start, succeed, together, wait
from tests.distributed.runners import At, Regression
from tests.distributed.test_resume import interrupted, outcome, train
from tests.resume_harness import Setting

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


def training(folder: Path, hook: str, number: int, rank: int) -> None:
    class Once(At):
        def _act(self, runner: dl.AccelerateRunner, *args: Any) -> None:
            super()._act(runner, *args)
            if runner.global_step >= self.step:
                self.rank = -1

    signalled = Once(hook, send(number), rank=rank, step=5)
    config = {"max_epochs": 4, "poll_interval": 3}
    runner = Regression(folder, config, callbacks=[signalled], default_callbacks=True)
    try:
        runner.train()
    finally:
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
    ended = wait(pids, tmp_path / "output.txt", timeout=40)

    assert ended.codes[0] not in (0, 143), ended.output
    assert ended.seconds < 30
    assert status(tmp_path) == "failed"
    assert saved_step(tmp_path) == 4  # at the end of the first epoch


def slowly(folder: Path) -> None:
    class Slow(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            (folder / f"step-{runner.global_step}").touch()
            time.sleep(0.1)

    Regression(folder, {"max_epochs": 9}, callbacks=[Slow()], default_callbacks=True).train()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    if not is_over:
        result = interrupted(tmp_path, 2, Setting(every="1 epoch"))
        assert without_stops(result) == without_stops(expected)
    else:
        assert without_stops(outcome(tmp_path, 2)) == without_stops(expected)


def without_stops(result: dict[str, Any]) -> dict[str, Any]:
    """Without the result of an epoch that was cut, and the row of the log at that point."""
    results = [row for row in result["results"] if "val" in row]
    return {**result, "results": results, "metrics": None}
