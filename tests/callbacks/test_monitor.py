from __future__ import annotations

import math
from typing import Any, Literal

import pytest

from danling.callbacks.monitor import Monitor
from danling.errors import CallbackError, MetricError

RESULT: dict[str, Any] = {
    "epoch": 1,
    "global_step": 6,
    "train": {"loss": 0.5},
    "val": {"loss": 0.4, "top/1": 0.9},
}


@pytest.mark.parametrize(
    ("score", "best", "mode", "expected"),
    [
        (0.5, None, "min", True),
        (0.5, 0.6, "min", True),
        (0.59, 0.6, "min", False),
        (0.5, 0.5, "min", False),
        (0.6, 0.5, "max", True),
        (0.51, 0.5, "max", False),
        (math.nan, None, "min", False),
        (-math.inf, 0.5, "min", False),
        (math.inf, 0.5, "max", False),
        (None, 0.5, "max", False),
        (0.0, -0.0, "max", False),
    ],
)
def test_better_means_by_more_than_min_delta_and_finite(
    score: float | None, best: float | None, mode: Literal["min", "max"], expected: bool
):
    monitor = Monitor("val/loss", mode, min_delta=0.05)

    assert monitor.is_better(score, best, mode) is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("val/accuracy", "max")),
        ({"monitor": "val/accuracy"}, ("val/accuracy", "max")),
        ({"monitor": "val/loss"}, ("val/loss", "min")),
        ({"monitor": "val/f1", "mode": "max"}, ("val/f1", "max")),
        ({"mode": "min"}, ("val/accuracy", "min")),
    ],
)
def test_what_is_not_given_is_the_runner_s(arguments: dict[str, Any], expected: tuple[str, str]):
    assert Monitor(**arguments).resolve("val/accuracy", "max") == expected


def test_another_value_than_the_runner_s_needs_a_mode():
    with pytest.raises(CallbackError, match="mode='min' or mode='max'"):
        Monitor("val/f1").resolve("val/loss", "min")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "loss"}, "a split and a name, as 'val/loss'"),
        ({"monitor": "val/"}, "a split and a name"),
        ({"mode": "maxx"}, "did you mean 'max'"),
        ({"min_delta": -0.1}, "must not be negative"),
        ({"min_delta": math.nan}, "must not be negative"),
    ],
)
def test_what_cannot_be_meant_is_an_error_at_once(arguments: dict[str, Any], message: str):
    with pytest.raises(CallbackError, match=message):
        Monitor(**arguments)


def test_a_score_is_found_under_its_split():
    assert Monitor().score("train/loss", RESULT) == 0.5
    assert Monitor().score("val/top/1", RESULT) == 0.9


def test_a_split_that_was_not_evaluated_has_no_score():
    assert Monitor().score("test/loss", RESULT) is None


def test_a_value_that_is_not_there_is_an_error_that_names_what_is():
    with pytest.raises(
        MetricError, match=r"did you mean 'val/loss'.*train/loss, val/loss, val/top/1"
    ):
        Monitor().score("val/los", RESULT)
