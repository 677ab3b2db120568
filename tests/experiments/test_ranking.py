from __future__ import annotations

import math
from pathlib import Path

import pytest

import danling as dl
from danling.errors import MetricError
from danling.experiments.ranking import is_comparable, ranked, score_of
from tests.support.runs import make_run


def test_of_equals_the_earliest_is_first(tmp_path: Path):
    for number in (1, 2, 3):
        make_run(tmp_path, number, score=0.5)

    assert [run.uuid[:8] for run in ranked(dl.runs(tmp_path))] == [f"{n:08x}" for n in (1, 2, 3)]


def test_the_mode_is_that_of_the_monitor_and_of_a_loss_the_least(tmp_path: Path):
    make_run(tmp_path, 1, score=0.5)
    runs = dl.runs(tmp_path)

    assert score_of(runs) == ("val.accuracy", "max")
    assert score_of(runs, "val/loss") == ("val.loss", "min")
    assert score_of(runs, "val.accuracy", "min") == ("val.accuracy", "min")
    with pytest.raises(MetricError, match="is a lower or a higher"):
        score_of(runs, "val.f1")


def test_different_monitors_cannot_be_ranked_without_a_name(tmp_path: Path):
    make_run(tmp_path, 1)
    make_run(tmp_path, 2, config={"monitor": "val/loss", "monitor_mode": "min"})

    with pytest.raises(MetricError, match="different monitors"):
        ranked(dl.runs(tmp_path))


@pytest.mark.parametrize(("value", "expected"), [(0, True), (None, False), (math.nan, False)])
def test_nan_and_nothing_are_not_ranked(value: object, expected: bool):
    assert is_comparable(value) is expected
