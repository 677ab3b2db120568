"""What becomes of the values of a name: the mean by default, or what `reduce` says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from danling import Callback
from danling.errors import MetricError
from danling.metrics.averages import Averages, Meter, Total
from danling.testing import TinyRunner

VALUES = [3.0, -1.0, 7.0, 2.0, 5.0, -4.0, 6.0, 1.0]
"""The value of each step; an epoch has four."""

REDUCED: dict[Any, Any] = {"sum": sum, "max": max, "min": min, "last": lambda values: values[-1]}


class Rows(Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def on_log(self, runner: Any, metrics: Any) -> None:
        self.rows.append((runner.global_step, dict(metrics)))


class Logging(TinyRunner):
    """Logs the value of each step in every way."""

    def train_step(self, batch: Any) -> Any:
        value = torch.tensor(VALUES[self.global_step % len(VALUES)])
        for reduce in REDUCED:
            self.log(f"{reduce}/step", value, reduce=reduce)
            self.log(f"train/{reduce}/epoch", float(value), reduce=reduce, on="epoch")
        self.log("weighed", value, n=self.batch_index + 1)
        self.log("weighed late", value, n=self.batch_index + 1, on="epoch")
        return super().train_step(batch)

    def evaluate_step(self, batch: Any) -> Any:
        for value in VALUES[:3]:
            self.log({"largest": value}, reduce="max")
            self.log("count", 1, reduce="sum", on="epoch")
        return super().evaluate_step(batch)


@pytest.mark.parametrize("reduce", REDUCED)
def test_windows_and_epochs_hold_what_is_wanted_of_their_values(reduce: str) -> None:
    rows = Rows()
    runner = Logging({"log_interval": 2}, callbacks=[rows])
    runner.train()

    of = REDUCED[reduce]
    found = [row[f"{reduce}/step"] for _, row in rows.rows if f"{reduce}/step" in row]
    assert found == [of(VALUES[first : first + 2]) for first in range(0, 8, 2)]
    late = [(step, row[tag]) for step, row in rows.rows if (tag := f"train/{reduce}/epoch") in row]
    assert late == [(4, of(VALUES[:4])), (8, of(VALUES[4:]))]
    assert [r["train"][f"{reduce}/epoch"] for r in runner.results] == [value for _, value in late]


def test_a_mean_weighs_by_its_number_of_samples() -> None:
    runner = Logging()
    runner.train()

    assert len(runner.results) == 2
    for epoch, result in enumerate(runner.results):
        values = VALUES[4 * epoch : 4 * epoch + 4]
        mean = sum(value * (index + 1) for index, value in enumerate(values)) / 10
        assert result["train"]["weighed"] == result["train"]["weighed late"] == mean


def test_within_an_evaluation_values_are_of_the_result_of_the_split() -> None:
    runner = Logging()
    runner.train()

    found = [(result["val"]["largest"], result["val"]["count"]) for result in runner.results]
    assert found == [(7.0, 3 * 4)] * 2


def test_what_is_logged_for_an_epoch_before_it_begins_is_of_it() -> None:
    class Early(Callback):
        def on_train_start(self, runner: Any) -> None:
            runner.log("given", 4.0, reduce="last", on="epoch")

        def on_epoch_start(self, runner: Any) -> None:
            runner.log("started", runner.epoch, on="epoch")

    runner = TinyRunner(callbacks=[Early()])
    runner.train()

    assert [result["train"]["started"] for result in runner.results] == [0.0, 1.0]
    assert runner.results[0]["train"]["given"] == 4.0
    assert "given" not in runner.results[1]["train"]


def test_what_end_hooks_log_is_of_the_result_that_ends_whatever_becomes_of_it() -> None:
    class Late(Callback):
        def on_evaluate_end(self, runner: Any, split: str, result: Any) -> None:
            for value in (1.0, 5.0, 2.0):
                runner.log("peak", value, reduce="max")

        def on_epoch_end(self, runner: Any) -> None:
            for value in (1.0, 5.0, 2.0):
                runner.log("total", value + runner.epoch, reduce="sum", on="epoch")

        def on_train_end(self, runner: Any) -> None:
            runner.log("val/final", 3.0, reduce="last")

    runner = TinyRunner(callbacks=[Late()])
    runner.train()

    assert [result["train"]["total"] for result in runner.results] == [11.0, 14.0]
    assert [result["val"]["peak"] for result in runner.results] == [5.0, 5.0]
    assert ["final" in result["val"] for result in runner.results] == [False, True]


@pytest.mark.parametrize("reduce", REDUCED)
def test_values_are_folded_on_the_device_without_a_change(reduce: Any) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    averages = Averages()
    for value in values:
        averages.keep("x", value, reduce)

    assert averages.take()["x"].value == pytest.approx(REDUCED[reduce](values.tolist()), rel=1e-12)


@pytest.mark.parametrize("reduce", ["sum", "max", "min"])
@pytest.mark.parametrize("place", [0, 1, 300])
def test_a_value_that_is_no_number_is_not_lost(reduce: Any, place: int) -> None:
    averages = Averages()
    for index in range(400):
        averages.keep("x", math.nan if index == place else float(index), reduce)
    total = averages.take()["x"]

    assert math.isnan(total.value)
    assert total.nonfinite >= 1
    assert math.isnan((total + Total(1.0, 1, 0, reduce)).value)
    assert math.isnan((Total(1.0, 1, 0, reduce) + total).value)


def test_an_open_meter_is_taken_up_and_merged_as_it_was() -> None:
    meters = [Meter(), Meter()]
    for rank, meter in enumerate(meters):
        meter.of_window.keep("last", 10.0 + rank, "last")
        meter.of_epoch.keep("most", 20.0 + rank, "max")
        meter.add("mean", 1.0 + rank, 3 - rank)
    states = [meter.state_dict() for meter in meters]

    whole = Meter()
    whole.load_state_dict(*states)

    assert whole.epoch_totals()["last"].value == 10.0
    assert whole.epoch_totals()["mean"].value == pytest.approx((3 + 4) / 5)
    assert whole.epoch_only_totals()["most"].value == 21.0
    assert whole.end_interval()["last"].value == 10.0


def test_a_state_of_before_there_were_reductions_is_taken_up() -> None:
    meter = Meter()
    meter.load_state_dict({"epoch": {"x": [6.0, 3.0, 0.0]}, "window": {}})

    assert meter.epoch_totals()["x"].value == 2.0
    assert meter.epoch_only_totals() == {}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "word": ({"reduce": "maximum"}, "no reduce='maximum': did you mean 'max'"),
    "moment": ({"on": "batch"}, 'log\\(on=\'batch\'\\): it is "step" or "epoch"'),
    "weight": ({"reduce": "sum", "n": 3}, "weighs a mean, and reduce='sum' is none"),
    "other": ({"reduce": "max"}, "has reduce='max', and before it was 'mean'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused(case: str, tmp_path: Path) -> None:
    arguments, message = WRONG[case]

    class Wrong(TinyRunner):
        def train_step(self, batch: Any) -> Any:
            self.log("x", 1.0)
            self.log("x", 2.0, **arguments)

    with pytest.raises(MetricError, match=message):
        Wrong().train()


def test_the_loss_of_a_step_has_no_other_reduction() -> None:
    class Wrong(TinyRunner):
        def train_step(self, batch: Any) -> Any:
            if self.global_step:
                self.log("loss", 2.0, reduce="max")
            return super().train_step(batch)

    with pytest.raises(MetricError, match="'train/loss' is logged with reduce='mean' and 'max'"):
        Wrong().train()
