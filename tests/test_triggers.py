from __future__ import annotations

import itertools
import math
import pickle

import pytest

from danling.errors import ConfigError
from danling.triggers import Every, Moment


def at(**place) -> Moment:
    return Moment(**place)


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("100 steps", "100 steps"),
        ("1 step", "1 steps"),
        ("step", "1 steps"),
        ("2 epochs", "2 epochs"),
        ("epoch", "1 epochs"),
        ("30 min", "30 minutes"),
        ("1.5 hours", "1.5 hours"),
        ("90s", "90 seconds"),
        (".1 run", "0.1 run"),
        (" 5  steps ", "5 steps"),
    ],
)
def test_a_period_is_a_number_and_a_unit(period, expected):
    every = Every(period)

    assert str(every) == expected
    assert repr(every) == f"Every('{expected}')"
    assert Every(str(every)) == Every(every) == every
    assert pickle.loads(pickle.dumps(every)) == every


@pytest.mark.parametrize(
    ("period", "message"),
    [
        ("100 stpes", "'stpes' is no unit: use steps, epochs"),
        ("100", "'100' is not a period: write '100 steps'"),
        ("", "is not a period"),
        ("-5 steps", "is not a period"),
        ("0 steps", "must be positive"),
        ("0 epochs", "must be positive"),
        ("2.5 steps", "whole for steps"),
        ("0 min", "must be positive"),
        (100, "100 is not a period"),
        (None, "None is not a period"),
    ],
)
def test_what_is_no_period_is_refused_with_an_example(period, message):
    with pytest.raises(ConfigError) as raised:
        Every(period)

    assert message in str(raised.value)


def test_steps_are_due_when_a_multiple_is_reached_or_passed():
    every = Every("3 steps")

    due = [
        step
        for step in range(1, 10)
        if every.is_due(at(global_step=step), at(global_step=step - 1))
    ]

    assert due == [3, 6, 9]
    assert every.is_due(at(global_step=7), at(global_step=5))
    assert not every.is_due(at(global_step=5), at(global_step=3))


def test_epochs_are_due_when_they_are_completed():
    every = Every("2 epochs")

    due = [epoch for epoch in range(1, 6) if every.is_due(at(epoch=epoch), at(epoch=epoch - 1))]

    assert due == [2, 4]


def test_time_is_due_when_so_much_has_passed():
    every = Every("2 min")

    assert not every.is_due(at(seconds=219.9), at(seconds=100.0))
    assert every.is_due(at(seconds=220.0), at(seconds=100.0))
    assert Every("1 h").is_due(at(seconds=3600.0), at())


@pytest.mark.parametrize("total", [7, 10, 30, 1000, 12345])
@pytest.mark.parametrize("parts", [1, 3, 4, 10])
def test_a_share_of_the_run_is_due_that_often_and_at_its_end(total, parts):
    every, last, due = Every(f"{1 / parts} run"), at(), []

    for step in range(1, total + 1):
        now = at(global_step=step, progress=step / total)
        if every.is_due(now, last):
            due.append(step)
            last = now

    assert len(due) == min(parts, total)
    assert due[-1] == total


def test_a_share_of_a_run_of_unknown_length_is_never_due():
    every = Every("0.1 run")

    assert not every.is_due(at(progress=math.nan), at())
    assert not every.is_due(at(progress=math.nan), at(progress=math.nan))


def test_a_share_of_the_run_is_due_once_its_length_is_known():
    every = Every("0.1 run")

    assert every.is_due(at(progress=0.5), at(progress=math.nan))


def test_periods_are_values():
    assert Every("1 epoch") == Every("epoch")
    assert Every("1 epoch") != Every("1 step")
    assert Every("60 s") != "60 s"
    assert len({Every("1 epoch"), Every("epoch"), Every("2 epochs")}) == 2


def test_a_share_of_an_epoch_is_due_within_it():
    every = Every("0.25 epoch")
    moments = [Moment(epoch=epoch, fraction=part / 10) for epoch in range(2) for part in range(10)]
    due = [
        (now.epoch, now.fraction)
        for last, now in itertools.pairwise(moments)
        if every.is_due(now, last)
    ]

    assert due == [(0, 0.3), (0, 0.5), (0, 0.8), (1, 0.0), (1, 0.3), (1, 0.5), (1, 0.8)]
    assert not every.is_of_epochs
    assert str(every) == "0.25 epochs"


def test_an_epoch_and_a_half_ends_within_every_second_one():
    every = Every("1.5 epochs")
    positions = [0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 2.75, 3.0]
    moments = [Moment(epoch=int(place), fraction=place % 1) for place in positions]

    due = [
        place
        for place, now, last in zip(positions[1:], moments[1:], moments, strict=False)
        if every.is_due(now, last)
    ]

    assert due == [1.5, 3.0]


def test_whole_epochs_are_due_at_their_ends_alone():
    every = Every("1 epoch")

    assert every.is_of_epochs
    assert not every.is_due(Moment(epoch=1, fraction=0.99), Moment(epoch=1))
    assert every.is_due(Moment(epoch=2), Moment(epoch=1, fraction=0.99))
