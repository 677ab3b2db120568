from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from danling.callbacks import LambdaCallback, Timer
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    def make(self):
        return Timer("1 h")


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("01:02:03:04", 93784.0),
        ("30 min", 1800.0),
        ("1.5 h", 5400.0),
        (timedelta(days=1), 86400.0),
        ({"hours": 1, "minutes": 1}, 3660.0),
    ],
)
def test_a_duration_is_written_in_many_ways(duration: Any, seconds: float):
    assert Timer(duration).duration == seconds


@pytest.mark.parametrize("duration", ["", "3 epochs", "1:2:3", timedelta(0), {"hours": 0}, 3, None])
def test_what_is_no_duration_is_an_error_that_shows_one(duration: Any):
    with pytest.raises(CallbackError, match="DD:HH:MM:SS"):
        Timer(duration)


def test_an_argument_that_a_timedelta_does_not_have_is_an_error():
    with pytest.raises(CallbackError, match="fortnights"):
        Timer({"fortnights": 1})


def test_an_interval_that_does_not_exist_is_an_error():
    with pytest.raises(CallbackError, match="did you mean 'epoch'"):
        Timer("1 h", interval=wrong("epochs"))


def ages_by(seconds: float) -> LambdaCallback:
    """Lets each step take so long, by the clock of the runner."""

    def age(runner):
        runner.clock.before += seconds

    return LambdaCallback(name="age", on_before_step=age)


def test_training_stops_after_the_step_in_which_the_time_is_up():
    timer = Timer("1 min")
    runner = TinyRunner({"max_epochs": 9}, callbacks=[timer, ages_by(25.0)])
    runner.train()

    assert runner.global_step == 3
    assert runner.stop_reason == "timer: 75 of 60 s of training are over"
    assert timer.time_remaining(runner) == 0.0


def test_training_stops_after_the_epoch_in_which_the_time_is_up():
    runner = TinyRunner({"max_epochs": 9}, callbacks=[Timer("1 min", "epoch"), ages_by(25.0)])
    runner.train()

    assert (runner.epoch, runner.global_step) == (1, 4)


def test_the_time_of_earlier_launches_counts(tmp_path):
    def launch() -> TinyRunner:
        config = {"project_root": str(tmp_path), "resume": "auto", "max_epochs": 9}
        return TinyRunner(config, callbacks=[Timer("1 min"), ages_by(10.0)], default_callbacks=True)

    first = launch()
    first.callbacks.append(LambdaCallback(on_epoch_end=lambda runner: runner.stop("enough")))
    first.train()
    path = first.checkpoint_dir / "latest.pth"
    second = TinyRunner(callbacks=[Timer("1 min"), ages_by(10.0)])
    second.config.max_epochs = 9
    second.load_checkpoint(path)
    second.train()

    assert (first.global_step, second.global_step) == (4, 6)
