"""Kill -9 at every place of a save of a training run: it goes on exactly, and is tidy after."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from danling.callback import Callback
from danling.callbacks import ModelCheckpoint
from danling.failpoints import set_failpoints
from danling.runner import AccelerateRunner
from tests.resume_harness import in_process
from tests.resume_runs import make_runner, names, trained, weights
from tests.test_commit import FAILPOINTS

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
