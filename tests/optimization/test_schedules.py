"""The schedules that have a name, against their formulas, and what is refused."""

from __future__ import annotations

from math import cos, pi, sqrt
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from danling.errors import ConfigError
from danling.optimization import make_scheduler
from danling.optimization.schedules import FACTORS, Cosine, Factor, WarmupStableDecay

TOTAL, WARMUP = 20, 5


def warm(step: int) -> float:
    return step / WARMUP


def left(step: int) -> float:
    return max(0.0, (TOTAL - step) / (TOTAL - WARMUP))


def done(step: int) -> float:
    return (step - WARMUP) / (TOTAL - WARMUP)


FORMULAS: list[tuple[str, dict[str, Any], Any]] = [
    ("constant", {}, lambda n: 1.0),
    ("linear", {}, left),
    ("cosine", {}, lambda n: 0.5 * (1 + cos(pi * done(n)))),
    ("cosine", {"cycles": 1.5}, lambda n: 0.5 * (1 + cos(3 * pi * done(n)))),
    ("cosine", {"final": 0.2}, lambda n: 0.2 + 0.8 * 0.5 * (1 + cos(pi * done(n)))),
    ("polynomial", {"power": 2.0}, lambda n: left(n) ** 2),
    ("inverse_sqrt", {}, lambda n: 1 / sqrt(n / WARMUP)),
    ("inverse_sqrt", {"timescale": 9}, lambda n: 1 / sqrt((n + 9 - WARMUP) / 9)),
    ("warmup_stable_decay", {"decay": 4}, lambda n: min(1.0, (TOTAL - n) / 4)),
    (
        "warmup_stable_decay",
        {"decay": 0.2, "shape": "1-sqrt"},
        lambda n: 1 - sqrt(max(0.0, (n - 16) / 4)),
    ),
    (
        "warmup_stable_decay",
        {"decay": 0.2, "shape": "cosine"},
        lambda n: 0.5 * (1 + cos(pi * max(0.0, (n - 16) / 4))),
    ),
]


def optimizer(rate: float = 2.0) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=rate)


@pytest.mark.parametrize(("name", "options", "formula"), FORMULAS)
@pytest.mark.parametrize("warmup", [WARMUP, WARMUP / TOTAL])
def test_rates_follow_the_formula(name: str, options: Any, formula: Any, warmup: float) -> None:
    moved = optimizer()
    schedule = make_scheduler(moved, name, TOTAL, warmup=warmup, **options)

    found = []
    for _ in range(TOTAL + 1):
        found.append(moved.param_groups[0]["lr"])
        moved.step()
        schedule.step()

    factors = [warm(n) if n < WARMUP else formula(n) for n in range(TOTAL + 1)]
    assert found == pytest.approx([2.0 * factor for factor in factors])


@pytest.mark.parametrize("name", FACTORS)
def test_after_the_end_the_factor_stays(name: str) -> None:
    factor: Factor = FACTORS[name](TOTAL, final=0.25)
    if name != "inverse_sqrt":
        assert {factor(n) for n in range(TOTAL, 2 * TOTAL)} == {factor(TOTAL)}
    assert factor(0) == 1.0


def test_a_class_of_torch_is_made_with_the_length() -> None:
    one = make_scheduler(optimizer(), "OneCycleLR", TOTAL, max_lr=1.0)
    other = make_scheduler(optimizer(), "CosineAnnealingLR", lambda: TOTAL)
    given = make_scheduler(optimizer(), "CosineAnnealingLR", TOTAL, T_max=7)
    ramp = make_scheduler(optimizer(), "LinearLR", TOTAL)

    assert (one.total_steps, other.T_max, given.T_max) == (TOTAL, TOTAL, 7)
    assert isinstance(ramp, lr_scheduler.LinearLR)
    assert ramp.total_iters == 5  # its own: the length of a ramp is not that of a training


def test_the_length_is_not_asked_for_where_nobody_needs_it() -> None:
    def length() -> int:
        raise AssertionError("it was asked for")

    assert isinstance(
        make_scheduler(optimizer(), "StepLR", length, step_size=3), lr_scheduler.StepLR
    )


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("cosin", {}, "there is no schedule 'cosin': did you mean 'cosine'"),
    ("Optimizer", {}, "there is no schedule 'Optimizer'"),
    ("cosine", {"warm_up": 3}, "the schedule 'cosine' has no 'warm_up': did you mean 'warmup'"),
    ("StepLR", {"size": 3}, "the schedule 'StepLR' has no 'size'"),
    ("StepLR", {}, "the schedule 'StepLR' cannot be made: .*step_size"),
    ("cosine", {"warmup": 21}, "a schedule of 20 moves has a warm-up of 21"),
    ("warmup_stable_decay", {"warmup": 10, "decay": 11}, "a warm-up of 10 and a decay of 11"),
    ("warmup_stable_decay", {"shape": "square"}, "the shape of a decay is 'square'"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_what_cannot_be_meant_is_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(optimizer(), name, TOTAL, **options)


def test_a_schedule_is_the_same_after_its_state_is_loaded() -> None:
    moved, again = optimizer(), optimizer()
    first = make_scheduler(moved, "cosine", TOTAL, warmup=2)
    for _ in range(7):
        moved.step()
        first.step()
    second = make_scheduler(again, "cosine", TOTAL, warmup=2)

    second.load_state_dict(first.state_dict())
    again.step()
    second.step()
    moved.step()
    first.step()

    assert second.get_last_lr() == first.get_last_lr()
    assert second.lr_lambdas == [Cosine(TOTAL, warmup=2)]
    assert WarmupStableDecay(10, decay=0.0)(9) == 1.0
