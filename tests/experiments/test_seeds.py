from __future__ import annotations

import statistics
from pathlib import Path

import pytest

import danling as dl
from danling.errors import MetricError
from danling.experiments.seeds import band
from danling.experiments.stored import History
from tests.support.runs import make_run


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path):
    scores = [0.5, 0.7, 0.9]
    for seed, score in enumerate(scores):
        make_run(tmp_path, seed + 1, score=score, config={"seed": seed})
    make_run(tmp_path, 4, score=0.1, config={"seed": 0, "optim": {"lr": 1.0}})
    make_run(tmp_path, 5, score=0.2, config={"seed": 3}, status="failed")
    make_run(tmp_path, 6, score=0.6, config={"seed": 0})  # again, and newer

    other, group = sorted(dl.runs(tmp_path).over_seeds(), key=lambda group: len(group.runs))

    assert other.settings["optim.lr"] == 1.0
    assert "seed" not in group.settings
    assert sorted(seed or 0 for seed in group.seeds) == [0, 1, 2]
    assert sorted(run.status for run in group.others) == ["failed", "finished"]
    summary = group.summary("val.accuracy")
    assert summary is not None
    assert summary.n == 3
    assert summary.mean == pytest.approx(statistics.fmean([0.6, 0.7, 0.9]))
    assert summary.std == pytest.approx(statistics.stdev([0.6, 0.7, 0.9]))
    assert str(summary) == "0.7333 ± 0.15 (3)"


def test_a_single_value_has_no_spread(tmp_path: Path):
    make_run(tmp_path, 1, score=0.5)
    (group,) = dl.runs(tmp_path).over_seeds()
    summary = group.summary("val.accuracy")

    assert summary is not None
    assert summary.std is None
    assert str(summary) == "0.5 (1)"


def test_a_band_has_the_steps_that_all_have():
    first = History([1, 2, 3], [1.0, 2.0, 3.0], [0.0] * 3)
    second = History([2, 3, 3, 4], [4.0, 9.0, 5.0, 6.0], [0.0] * 4)

    assert band([first, second]) == ([2, 3], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0])
    assert band([]) == ([], [], [], [])


def test_a_group_without_the_curve_says_so(tmp_path: Path):
    make_run(tmp_path, 1)

    with pytest.raises(MetricError, match="has no curve"):
        dl.runs(tmp_path).over_seeds()[0].band("val/f1")
