"""Faults around the saves of a training run: it goes on exactly, and is tidy after."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.callback import Callback
from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.errors import CheckpointError
from danling.files.failpoints import set_failpoints
from danling.runner.accelerate import AccelerateRunner
from tests.checkpoint.test_commit import FAILPOINTS
from tests.support.resume_harness import in_process
from tests.support.resume_runs import STEPS, interrupted, log, make_runner, names, trained, weights

# what is not on the way of an early save: nothing to keep, nothing to remove
ABSENT = {("checkpoint.after_previous", 1)} | {("checkpoint.before_unlink", n) for n in (1, 2)}
SWEEP = [
    pytest.param(place, number, id=f"{place.partition('.')[2]}-{number}")
    for place in FAILPOINTS
    for number in (1, 2, 10)
    if (place, number) not in ABSENT
]
SAMPLE = [SWEEP[index] for index in (0, 8, 16, 19, 22, 26, 30, 38)]


class KillAtSave(Callback):
    """Arms a fail point right before one of the saves."""

    name = "kill_at_save"

    def __init__(self, place: str, number: int) -> None:
        self.place = place
        self.number = number

    def on_checkpoint(self, runner: AccelerateRunner) -> None:
        if runner.global_step == self.number:
            set_failpoints(f"{self.place}=kill")


def checkpoint() -> ModelCheckpoint:
    return ModelCheckpoint("1 step", keep_every="1 step", keep_last=2)


def die(place: str, number: int) -> None:
    torch.set_num_threads(1)
    make_runner([checkpoint(), KillAtSave(place, number)]).train()


def check(place: str, number: int) -> None:
    assert in_process(die, place, number) == -signal.SIGKILL

    again = trained([checkpoint()], resume="auto")

    report = again.resume_report
    if report is not None:  # else the first save never ended
        assert report["exact"]
        assert report["global_step"] in (number - 1, number)
    else:
        assert number == 1
    assert len(list(Path("experiments").glob("danling-*"))) == 1
    assert not list(again.checkpoint_dir.glob(".tmp.*"))
    assert names(again) == {"latest", "previous", "best", "step-11", "step-12"}
    assert weights(again) == weights(trained([checkpoint()]))


@pytest.mark.parametrize(("place", "number"), SAMPLE)
def test_a_kill_in_a_save_costs_one_step_and_nothing_else(place: str, number: int):
    check(place, number)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("place", "number"), SWEEP)
def test_a_kill_anywhere_in_a_save_costs_one_step_and_nothing_else(place: str, number: int):
    check(place, number)


# What a callback's state does


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError("too much")], ids=repr)
def test_a_state_that_raises_ends_the_run_and_keeps_what_was_there(error: Exception):
    def give() -> dict[str, Any]:
        if runner.epoch == 2:
            raise error
        return {}

    odd = LambdaCallback(name="odd")
    odd.state_dict = give
    runner = make_runner([odd], max_epochs=3)

    with pytest.raises(type(error), match=str(error)) as caught:
        runner.train()

    assert caught.value is error
    assert names(runner) == {"latest", "best"}
    assert not list(runner.checkpoint_dir.glob(".tmp.*"))
    again = trained(resume=str(runner.dir), max_epochs=3)
    assert weights(again) == weights(trained(max_epochs=3))


# The process has no files left


def run_out_of_files() -> None:
    torch.set_num_threads(1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(runner: AccelerateRunner) -> None:
        if runner.global_step == 3:
            resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) - 1, limits[1]))

    runner = make_runner([ModelCheckpoint("1 step"), LambdaCallback(name="limit", on_step=limit)])
    try:
        runner.train()
    except CheckpointError as error:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        Path("error").write_text(f"{error.errno} {runner.global_step}")


def test_a_process_without_files_to_open_keeps_what_it_saved():
    assert in_process(run_out_of_files) == 0

    again = trained([ModelCheckpoint("1 step")], resume="auto")

    assert Path("error").read_text() == f"{errno.EMFILE} 3"
    assert again.resume_report is not None
    assert (again.resume_report["global_step"], again.resume_report["exact"]) == (2, True)
    assert weights(again) == weights(trained())


# Files that are derived from the run


def remove(path: Path) -> None:
    path.unlink()


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def fill_with_nonsense(path: Path) -> None:
    path.write_text('{"a": NaN, "a": [' * 1000)


DERIVED = ["results.json", "latest.json", "best.json", "run.log"]
THINNED = [("results.json", fill_with_nonsense), ("best.json", remove), ("run.log", tear)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(*case, marks=() if case in THINNED else pytest.mark.exhaustive)
        for case in product(DERIVED, [remove, tear, fill_with_nonsense])
    ],
)
def test_damage_to_a_file_that_is_derived_is_mended_by_the_next_start(
    name: str, damage: Callable[[Path], None]
):
    first, whole = interrupted(STEPS + 3), trained()
    damage(first.dir / name)

    again = trained(resume=str(first.dir))

    assert weights(again) == weights(whole)
    assert "finished after" in log(again).splitlines()[-4]
    for derived in DERIVED[:3]:
        assert (again.dir / derived).read_text() == (whole.dir / derived).read_text()


@pytest.mark.parametrize("damage", [remove, tear])
def test_rows_that_are_lost_stay_lost_and_disturb_nothing(damage: Callable[[Path], None]):
    first, whole = interrupted(STEPS + 3), trained()
    damage(first.dir / "metrics.jsonl")

    again = trained(resume=str(first.dir))

    assert weights(again) == weights(whole)
    rows = (again.dir / "metrics.jsonl").read_text().splitlines()
    assert rows[-1].partition('"time"')[0] in (whole.dir / "metrics.jsonl").read_text()
    assert len(rows) == len(set(rows))
