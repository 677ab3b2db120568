from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from danling.cli.main import main


def test_a_row_per_run_with_the_columns_that_are_asked_for(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", "-c", "seed,optim.lr", "-m", "val.accuracy"]) == 0

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["val.accuracy"]) for row in rows] == [0.9, 0.7, 0.5]
    assert rows[0].keys() == {"seed", "optim.lr", "val.accuracy"}


def test_curves_in_long_form(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "@1", "--history", "val.accuracy", "--format", "jsonl"]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["global_step"], row["value"]) for row in rows] == [(4, 0.45), (8, 0.9)]


def test_latex_is_ready_for_a_paper(root: Path, capsys: pytest.CaptureFixture[str]):
    main(["export", "--seeds", "--format", "latex", "-m", "val.accuracy"])

    table = capsys.readouterr().out
    assert table.startswith("\\begin{tabular}")
    assert table.count("\\textbf{") == 1
    assert "$\\pm$" in table


def test_a_table_in_a_file(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "-o", "runs.csv"]) == 0

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "written to runs.csv" in printed.err
    assert len(Path("runs.csv").read_text().splitlines()) == 4


def test_a_report_is_written_into_a_pipe_and_does_not_replace_it(root: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    assert main(["report", "-o", str(pipe)]) == 0

    assert os.read(reader, 15) == b"<!doctype html>"
    assert pipe.is_fifo()
    os.close(reader)


def test_a_report_that_cannot_be_written_says_what_to_do(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", "-o", "none/page.html"]) == 1

    assert "name another file with -o" in capsys.readouterr().err
