from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.errors import ConfigError, MetricError
from danling.experiments import Runs
from danling.experiments.reports.tables import FORMATS, formatted, history_rows, seed_table
from tests.support.runs import make_run

ROWS: list[dict[str, Any]] = [
    {"name": "a|b_c", "lr": 0.1, "tags": ["x"]},
    {"name": "50 %", "lr": None, "tags": []},
]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    for number, (rate, score) in enumerate([(0.1, 0.5), (0.1, 0.7), (1.0, 0.9), (1.0, 0.8)], 1):
        make_run(tmp_path, number, score=score, config={"optim": {"lr": rate}, "seed": number})
    return dl.runs(tmp_path)


def test_csv_and_json_give_the_values_back():
    table = list(csv.DictReader(io.StringIO(formatted(ROWS, "csv"))))

    assert [row["name"] for row in table] == ["a|b_c", "50 %"]
    assert [row["lr"] for row in table] == ["0.1", ""]
    assert json.loads(formatted(ROWS, "json")) == ROWS
    assert [json.loads(line) for line in formatted(ROWS, "jsonl").splitlines()] == ROWS


def test_markdown_and_latex_escape_what_they_must():
    assert r"| a\|b_c | 0.1 | [x] |" in formatted(ROWS, "markdown")
    latex = formatted(ROWS, "latex")
    assert r"a|b\_c & 0.1 & [x] \\" in latex
    assert r"50 \% &  & [] \\" in latex


@pytest.mark.parametrize("form", FORMATS)
def test_without_rows_there_is_no_error(form: str):
    assert isinstance(formatted([], form), str)


def test_an_unknown_format_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'latex'"):
        formatted(ROWS, "latx")


def test_the_best_mean_over_seeds_is_bold(runs: Runs):
    latex = seed_table(runs, "latex", ["val.accuracy", "val.loss"])

    assert r"1 & \textbf{0.85 $\pm$ 0.071 (2)} & \textbf{0.15 $\pm$ 0.071 (2)} \\" in latex
    assert latex.count(r"\textbf") == 2
    assert "**0.85 ± 0.071 (2)**" in seed_table(runs, "markdown")
    rows = list(csv.DictReader(io.StringIO(seed_table(runs, "csv"))))
    assert [float(row["val.accuracy.mean"]) for row in rows] == pytest.approx([0.85, 0.6])


def test_curves_in_long_form(runs: Runs):
    rows = history_rows(runs)

    assert len(rows) == 8
    assert rows[0].keys() == {"id", "tag", "global_step", "value", "time"}
    with pytest.raises(MetricError):
        history_rows(runs, ["val/f1"])
