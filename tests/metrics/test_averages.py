from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from danling.metrics.averages import Averages, Meter, Total


def mean_of(values, counts=None) -> float:
    averages = Averages()
    for value, count in zip(values, counts or [1] * len(values), strict=True):
        averages.add("x", value, count)
    return averages.take()["x"].mean


def test_means_are_weighted_by_samples():
    assert mean_of([torch.tensor(1.0), torch.tensor(4.0)], [8, 4]) == 2.0
    assert mean_of([1.0, 4.0], [8, 4]) == 2.0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, float])
@pytest.mark.parametrize("amount", [1, 5, 64, 65, 1000])
def test_means_of_mixed_magnitude_and_counts_are_exact(kind, amount):
    draw = random.Random(amount)
    numbers = [draw.choice([-1, 1]) * 10 ** draw.uniform(-6, 6) for _ in range(amount)]
    counts = [draw.randint(1, 32) for _ in range(amount)]
    values = [value if kind is float else torch.tensor(value, dtype=kind) for value in numbers]

    weighted = [float(value) * count for value, count in zip(values, counts, strict=True)]
    expected = math.fsum(weighted) / sum(counts)
    scale = math.fsum(map(abs, weighted)) / sum(counts)

    assert abs(mean_of(values, counts) - expected) <= 1e-13 * scale


def test_small_losses_after_a_large_one_are_not_lost():
    values = [torch.tensor(1e8)] + [torch.tensor(1e-2)] * 10_000

    assert mean_of(values) == pytest.approx((1e8 + 1e2) / 10_001, rel=1e-9)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(True),
        torch.tensor(3),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.tensor([[2.5]]),
        True,
        7,
    ],
)
def test_any_number_can_be_averaged(value):
    assert mean_of([value]) == float(value)
    assert mean_of([value, 0.5, torch.tensor(1.5)]) == pytest.approx((float(value) + 2) / 3)


def test_values_that_are_not_finite_are_counted_and_not_hidden():
    averages = Averages()
    for value in (1.0, math.nan, math.inf, 2.0):
        averages.add("x", torch.tensor(value))
        averages.add("y", value)

    totals = averages.take()

    assert totals["x"].nonfinite == totals["y"].nonfinite == 2
    assert math.isnan(totals["x"].mean)
    assert totals["x"].count == 4


@pytest.mark.parametrize("adds", [2, 128, 300])  # so many that they are folded on the device
def test_a_value_of_no_samples_counts_nowhere_even_where_it_is_nan(adds: int):
    averages = Averages()
    for number in range(adds):
        is_empty = number % 2 == 0
        averages.add("x", torch.tensor(math.nan if is_empty else 3.0), 0 if is_empty else 4)

    total = averages.take()["x"]

    assert (total.mean, total.count, total.nonfinite) == (3.0, 2 * adds, 0)


def test_taking_forgets():
    averages = Averages()
    averages.add("x", 1.0)

    assert averages
    assert averages.take()["x"].mean == 1.0
    assert not averages
    assert averages.take() == {}


def test_names_are_apart():
    averages = Averages()
    averages.add("x", 1.0)
    averages.add("y", torch.tensor(2.0), 3)
    averages.add("x", 3.0)

    totals = averages.take()

    assert {name: (total.mean, total.count) for name, total in totals.items()} == {
        "x": (2.0, 2),
        "y": (2.0, 3),
    }


def test_adding_moves_nothing_to_the_host_and_taking_does_so_once(monkeypatch: pytest.MonkeyPatch):
    moved = []

    def counted(name, method):
        def call(tensor, *args):
            moved.append(name)
            return method(tensor, *args)

        return call

    for name in ("item", "tolist", "__float__", "__bool__", "cpu"):
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    averages = Averages()

    for step in range(1000):
        averages.add("loss", torch.tensor(1.0), 1 + step % 3)
        averages.add("accuracy", torch.tensor(0.5), 8)
    while_adding = list(moved)
    averages.take()

    assert while_adding == []
    assert moved == ["tolist"]


def test_a_count_may_stay_on_the_device(monkeypatch: pytest.MonkeyPatch):
    averages = Averages()
    for _ in range(100):
        averages.add("x", torch.tensor(1.0), torch.tensor(3))
        averages.add("x", torch.tensor(4.0), torch.tensor(1))
        averages.add("x", 2.5, 4)

    total = averages.take()["x"]

    assert total.mean == (3 + 4 + 10) / 8
    assert total.count == 800


def test_totals_add_up_and_survive_as_numbers():
    total = Total(3.0, 2.0, 1) + Total(5.0, 2.0)

    assert total == Total(8.0, 4.0, 1)
    assert total.mean == 2.0
    assert Total.of(total.state()) == total
    assert math.isnan(Total().mean)


def test_a_meter_keeps_the_epoch_and_the_window_apart():
    meter = Meter()
    meter.start_epoch()
    meter.add("loss", torch.tensor(1.0))
    first = meter.end_interval()
    meter.add("loss", torch.tensor(3.0))

    assert first["loss"].mean == 1.0
    assert meter.epoch_totals()["loss"].mean == 2.0
    assert meter.end_interval()["loss"].mean == 3.0
    assert meter.end_interval() == {}
    meter.start_epoch()
    assert meter.epoch_totals() == {}
    assert not meter


def test_a_window_runs_on_over_the_end_of_an_epoch():
    meter = Meter()
    meter.add("loss", 1.0)
    meter.start_epoch()
    meter.add("loss", 3.0)

    assert meter.epoch_totals()["loss"].mean == 3.0
    assert meter.end_interval()["loss"].mean == 2.0


def test_a_meter_goes_on_from_its_state():
    whole, before, after = Meter(), Meter(), Meter()
    for meter in (whole, before):
        meter.add("loss", torch.tensor(0.1), 8)
        meter.end_interval()
        meter.add("loss", torch.tensor(0.7), 5)
    after.add("loss", 1e9)
    after.load_state_dict(before.state_dict())
    for meter in (whole, after):
        meter.add("loss", torch.tensor(0.3), 3)

    assert after.epoch_totals() == whole.epoch_totals()
    assert after.end_interval() == whole.end_interval()
    assert before.epoch_totals()["loss"].count == 13
