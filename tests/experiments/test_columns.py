from __future__ import annotations

from pathlib import Path

import pytest

import danling as dl
from danling.errors import ConfigError
from danling.experiments import Runs
from danling.experiments.columns import FIELDS, column, differing_settings, known_columns
from tests.support.runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    make_run(tmp_path, 1, config={"optim": {"lr": 0.1}, "status": "mine"}, score=0.5)
    make_run(tmp_path, 2, config={"optim": {"lr": 0.2}, "depth": 3}, score=0.75)
    return dl.runs(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "finished"),
        ("config.status", "mine"),
        ("optim.lr", 0.1),
        ("best.val.accuracy", 0.5),
        ("latest.val.loss", 0.5),
        ("val.accuracy", 0.5),
        ("val/accuracy", 0.5),
        ("depth", None),
    ],
)
def test_a_name_means_the_same_everywhere(runs: Runs, name: str, value: object):
    assert column(runs, name)(runs[1]) == value


@pytest.mark.parametrize(
    ("name", "hint"),
    [("optim", "it is a group, of optim.lr"), ("otpim.lr", "did you mean 'optim.lr'")],
)
def test_an_unknown_name_is_an_error_with_the_nearest(runs: Runs, name: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        column(runs, name)


def test_only_keys_with_several_values_differ(runs: Runs):
    assert set(differing_settings(runs)) == {"optim.lr", "depth", "status"}
    assert differing_settings(runs[:1]) == []


def test_every_known_column_can_be_asked(runs: Runs):
    names = known_columns(runs)

    assert {*FIELDS, "optim.lr", "val.accuracy", "best.val.loss"} <= set(names)
    for name in names:
        column(runs, name)(runs[0])
