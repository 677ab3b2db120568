"""Learning rates and schedules that are given anew win over those of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from danling.callbacks import LambdaCallback
from tests.support.resume_runs import STEPS, interrupted, log, trained, weights


def sgd(lr: float, momentum: float = 0.9) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def rate(runner: Any) -> float:
    return float(runner.optimizer.param_groups[0]["lr"])


def test_a_learning_rate_that_is_given_now_wins_and_is_printed():
    first = interrupted(9, optimizer=sgd(0.004))

    again = trained(optimizer=sgd(0.001), resume=str(first.dir))

    assert rate(again) == 0.001
    assert "optimizer.lr was 0.004, now it is 0.001" in log(again)


def test_what_is_given_as_before_is_what_training_made_of_it():
    def halve(runner: Any) -> None:
        if runner.global_step == 3:
            runner.optimizer.param_groups[0]["lr"] /= 2

    callback = LambdaCallback(name="halve", on_step=halve)
    first = interrupted(9, [callback])

    again = trained([callback], resume=str(first.dir))

    assert rate(again) == 0.0025
    assert again.resume_report is not None
    assert again.resume_report["changes"] == []


def test_a_learning_rate_that_a_schedule_moves_is_scaled():
    schedule = lambda optimizer: lr_scheduler.StepLR(optimizer, STEPS, gamma=0.1)  # noqa: E731
    first = interrupted(9, optimizer=sgd(0.004), scheduler=schedule)

    again = trained(optimizer=sgd(0.002), scheduler=schedule, resume=str(first.dir), max_epochs=1)

    assert rate(again) == pytest.approx(0.0002)


@pytest.mark.parametrize("kind", ["cosine", "onecycle", "linear"])
def test_the_horizon_of_a_schedule_is_that_of_now(kind: str):
    def schedule(steps: int) -> Any:
        return {
            "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, steps),
            "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=steps),
            "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=steps),
        }[kind]

    first = trained(scheduler=schedule(STEPS + 1), max_epochs=1)

    longer = trained(scheduler=schedule(3 * STEPS + 1), max_epochs=3, resume=str(first.dir))

    whole = trained(scheduler=schedule(3 * STEPS + 1), max_epochs=3)
    assert rate(longer) == pytest.approx(rate(whole))
    assert longer.scheduler.last_epoch == whole.scheduler.last_epoch


def test_a_schedule_that_is_given_as_before_is_restored_bit_for_bit():
    schedule = lambda o: lr_scheduler.CosineAnnealingLR(o, 2 * STEPS)  # noqa: E731
    first = interrupted(9, scheduler=schedule)

    again = trained(scheduler=schedule, resume=str(first.dir))

    assert weights(again) == weights(trained(scheduler=schedule))
