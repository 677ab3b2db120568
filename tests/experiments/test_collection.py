from __future__ import annotations

import sys
from pathlib import Path

import pytest

import danling as dl
from danling.errors import ConfigError, MetricError, RunDirectoryError
from danling.experiments import Runs, SelectionError
from tests.support.runs import make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "experiments"
    for number, (rate, score) in enumerate([(0.1, 0.7), (0.01, 0.9), (0.1, None), (1.0, 0.8)], 1):
        config = {"optim": {"lr": rate}, "seed": number}
        make_run(root, number, score=score, config=config, run_id=f"{number:032x}")
    return root


def numbers(runs: Runs) -> list[int]:
    return [int(run.uuid[:8], 16) for run in runs]


def test_the_newest_comes_first_and_a_slice_is_a_list_of_runs(root: Path):
    runs = dl.runs(root)

    assert numbers(runs) == [4, 3, 2, 1]
    assert numbers(runs[1:3]) == [3, 2]
    assert runs[-1].uuid == runs["00000001"].uuid
    assert runs[0] in runs


def test_expressions_keywords_and_functions_filter(root: Path):
    runs = dl.runs(root)

    assert numbers(runs.filter("optim.lr == 0.1")) == [3, 1]
    assert numbers(runs.filter(optim__lr=0.1)) == [3, 1]
    assert numbers(runs.filter(optim__lr=[0.01, 1.0])) == [4, 2]
    assert numbers(runs.filter(lambda run: run.score is None)) == [3]
    assert numbers(runs.filter("val.accuracy > .6", lambda run: run.seed != 2)) == [4, 1]
    with pytest.raises(ConfigError, match=r"did you mean 'optim\.lr'"):
        runs.filter(optim__lrr=1)


def test_runs_without_a_value_come_last_in_either_direction(root: Path):
    runs = dl.runs(root)

    assert numbers(runs.sort("val.accuracy")) == [1, 4, 2, 3]
    assert numbers(runs.sort("-val.accuracy")) == [2, 4, 1, 3]
    assert numbers(runs.sort("optim.lr", "-seed")) == [2, 3, 1, 4]


def test_the_best_by_the_monitor_and_by_another_metric(root: Path):
    runs = dl.runs(root)
    best, least = runs.best(), runs.best("val.loss")

    assert best is not None
    assert best.score == 0.9
    assert least == best
    assert numbers(runs.ranked()) == [2, 4, 1]
    assert runs.score_of() == ("val.accuracy", "max")
    with pytest.raises(MetricError, match="--mode min or max"):
        runs.best("optim.lr")


def test_words_select_in_their_order(root: Path):
    runs = dl.runs(root)

    assert numbers(runs.select("@best", "@1")) == [2, 4]
    with pytest.raises(SelectionError):
        runs.select("nothing")


def test_compared_runs_are_columns(root: Path):
    runs = dl.runs(root)[:2]

    rows = {row.pop("key"): list(row.values()) for row in runs.compare()}

    assert rows["optim.lr"] == [1.0, 0.1]
    assert rows["val.accuracy"] == [0.8, None]


def test_rows_and_histories(root: Path):
    runs = dl.runs(root)

    assert runs.to_dicts("seed", "val.loss")[0] == {"seed": 4, "val.loss": pytest.approx(0.2)}
    assert runs.history("val/accuracy")[runs[0].id].values == [0.4, 0.8]
    with pytest.raises(MetricError, match="has no curve 'val/acc'"):
        runs.history("val/acc")


def test_a_table_for_a_notebook_has_every_run(root: Path):
    page = dl.runs(root)._repr_html_()

    ids = [run.id for run in dl.runs(root)]
    assert len(ids) == 4
    assert [run_id for run_id in ids if run_id not in page] == []


def test_to_pandas_says_what_to_install_where_there_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(ImportError, match="pip install pandas"):
        dl.runs(root).to_pandas()


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="there is no folder"):
        dl.runs(tmp_path / "none")
