"""What schedules may be handed over as, and when each of them moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau

import danling as dl
from danling.errors import ConfigError
from danling.optimization.movement import Moving, argument_of, make_schedulers, read_schedules
from danling.optimization.schedules import Linear, Schedule


def optimizer() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


class Recorded:
    """Writes down with what it is moved."""

    def __init__(self) -> None:
        self.moves: list[tuple[Any, ...]] = []

    def step(self, *arguments: Any) -> None:
        self.moves.append(arguments)


class RecordedMetric(Recorded):
    def step(self, metrics: float) -> None:
        super().step(metrics)


def test_all_forms_of_a_schedule_are_read() -> None:
    scheduler = Recorded()
    forms = [
        scheduler,
        (scheduler, "epoch"),
        Schedule(scheduler, monitor="val/loss"),
        "cosine",
        {"name": "linear", "interval": "epoch", "frequency": 2, "monitor": None, "warmup": 3},
    ]

    found = list(read_schedules(forms)[""].values())

    assert found == [
        Schedule(scheduler),
        Schedule(scheduler, "epoch"),
        Schedule(scheduler, monitor="val/loss"),
        Schedule("cosine"),
        Schedule("linear", "epoch", 2, options={"warmup": 3}),
    ]
    assert read_schedules(None) == {}
    assert read_schedules({"name": "cosine"}) == {"": {"": Schedule("cosine")}}
    assert list(read_schedules({"a": scheduler, "b": [scheduler, scheduler]})["b"]) == [
        "b.0",
        "b.1",
    ]


def test_a_section_of_a_configuration_is_a_schedule() -> None:
    config = dl.Config(scheduler={"name": "cosine", "warmup": 0.1})

    assert read_schedules(config.scheduler)[""][""] == Schedule("cosine", options={"warmup": 0.1})


def test_a_mapping_without_a_name_is_no_schedule() -> None:
    with pytest.raises(ConfigError, match="a schedule has a 'name', and here are warmup keys"):
        read_schedules([{"warmup": 3}])


@pytest.mark.parametrize(("interval", "moves"), [("step", 3), ("epoch", 1), ("evaluation", 0)])
def test_a_scheduler_moves_at_its_interval_and_frequency(interval: Any, moves: int) -> None:
    scheduler = Recorded()
    moving = Moving(Schedule(scheduler, interval, 2), "step")

    for index in range(6):
        if (after_step := moving.after_step()) is not None:
            after_step()
        if index % 2:
            moving.end_epoch(index)

    assert len(scheduler.moves) == moves


def test_one_without_an_interval_follows_the_run() -> None:
    moving = Moving(Schedule(Recorded()), "epoch")
    assert moving.after_step() is None

    moving.settle("step")
    assert moving.after_step() == moving.scheduler.step

    own = Moving(Schedule(Recorded(), "epoch"), "step")
    own.settle("step")
    assert own.after_step() is None


def test_one_that_watches_moves_with_values_that_are_new() -> None:
    scheduler = RecordedMetric()
    moving = Moving(Schedule(scheduler, monitor="val/f1", frequency=2), "step")

    for value in (0.1, 0.2, 0.3, 0.4):
        moving.end_evaluation(9.0, {"val": {"f1": value}})
        moving.end_evaluation(9.0, {"test": {"f1": -1.0}})

    assert scheduler.moves == [(0.2,), (0.4,)]
    assert moving.after_step() is None


def test_one_without_a_monitor_takes_the_score_of_the_run_where_it_is_new() -> None:
    moving = Moving(Schedule(RecordedMetric()), "step")

    moving.end_evaluation(3.0, {})
    moving.end_evaluation(None, {})

    assert moving.scheduler.moves == [(3.0,)]


def test_the_argument_of_a_scheduler_is_known_by_its_name() -> None:
    assert argument_of(ReduceLROnPlateau(optimizer())) == "metrics"
    assert argument_of(ExponentialLR(optimizer(), 0.9)) is None
    assert argument_of(Recorded()) is None
    assert argument_of(RecordedMetric()) == "metrics"


def test_a_name_becomes_a_scheduler_of_each_optimizer() -> None:
    optimizers: dict[str, Any] = {"a": [optimizer(), optimizer()], "b": optimizer()}
    lengths = {"step": 100, "epoch": 10}.__getitem__

    found = make_schedulers(
        {"a": {"name": "linear", "frequency": 5}, "b": ("cosine", "epoch")},
        optimizers,
        lengths,
        "step",
    )

    first, second = found["a"]
    assert [each.scheduler.lr_lambdas for each in (first, second)] == [
        [Linear(20, follows=True)]
    ] * 2
    assert first.scheduler.optimizer is optimizers["a"][0]
    assert second.frequency == 5
    assert found["b"].scheduler.lr_lambdas[0].total == 10
    assert found["b"].interval == "epoch"


def test_what_has_no_name_stays_as_it_was_given() -> None:
    given = [(Recorded(), "epoch"), Recorded()]

    assert make_schedulers(given, {"": optimizer()}, lambda _: None, "step") is given
    with pytest.raises(ConfigError, match="the scheduler 'a' has no optimizer of that name"):
        make_schedulers({"a": Recorded()}, {"b": optimizer()}, lambda _: None, "step")


def test_a_length_that_is_given_is_not_followed() -> None:
    moved = optimizer()
    scheduler = make_schedulers(
        {"name": "linear", "total": 10}, {"": moved}, lambda _: None, "step"
    )
    moving = Moving(Schedule(scheduler), "step")

    moving.follow(lambda _: 20)

    assert isinstance(scheduler, LambdaLR)
    assert scheduler.lr_lambdas == [Linear(10)]
