from __future__ import annotations

import json
from pathlib import Path

import pytest

import danling as dl
from danling.cli.main import main
from tests.support.runs import make_run


def test_only_what_differs_is_a_column(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ls"]) == 0

    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("run", "name", "status", "age", "seed", "optim.lr", "val.accuracy", "at", "time", "code")
    ]
    assert len(rows) == 3
    assert "epoch 2" in rows[0]


def test_uncommitted_code_has_a_star_and_a_failure_its_reason(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    make_run(root, 4, status="failed", reason="ValueError: \x1b[31mno", code={"dirty": True})

    main(["ls", "-c", "reason"])

    printed = capsys.readouterr()
    assert "aaaaaaaa*" in printed.out
    assert "ValueError: \\x1b[31mno" in printed.out
    assert "4 runs; * uncommitted code, saved with the run; 00000004: ValueError" in printed.err


def test_ids_keys_and_what_was_passed_over(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "data").mkdir()

    assert main(["ls", "-q", "@1"]) == 0
    assert main(["ls", "--keys"]) == 0
    assert main(["ls", "--passed-over"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == dl.runs(root)[0].id
    assert {"optim.lr", "val.accuracy", "status"} <= set(lines)
    assert lines[-1].split(None, 1) == ["data", "it has no run.json"]


def test_the_best_and_its_file(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["best", "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["data"]
    assert (best["value"], best["metric"], best["epoch"]) == (0.9, "val.accuracy", 2)
    assert main(["best", "--path"]) == 1
    assert "has no checkpoint 'best'" in capsys.readouterr().err
    folder = dl.runs(root)["@best"].path / "checkpoints"
    folder.mkdir()
    (folder / "best.pth").write_text("")
    assert main(["best", "--path"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "best.pth")
    assert main(["best", "-n", "2", "-m", "val.loss", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["data"]) == 2


@pytest.mark.parametrize("words", [["seeds"], ["ls", "--seeds"]])
def test_a_row_per_configuration(root: Path, words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0

    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["1", "0.1"]
    assert "0.6 ± 0.14 (2)" in rows[1]
    assert "0.9 (1)" in rows[0]
