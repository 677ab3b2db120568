from __future__ import annotations

import json
from pathlib import Path

import pytest

import danling as dl
from danling.cli.main import main


def data(words: list[str], capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    main([*words, "--json"])
    return json.loads(capsys.readouterr().out)["data"]


def test_tags_and_notes(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tag", "@1", "paper", "good"]) == 0
    assert data(["tag", "@1", "--remove", "good"], capsys)[0]["tags"] == ["paper"]
    assert main(["note", "@1", "look again"]) == 0
    assert data(["note", "@1"], capsys)["notes"][0]["text"] == "look again"


def test_nothing_is_removed_without_yes(root: Path, capsys: pytest.CaptureFixture[str]):
    told = data(["rm", "@all"], capsys)

    assert not told["done"]
    assert [row["kept"] for row in told["runs"]] == ["it is the best", None, None]
    assert len(dl.runs(root)) == 3
    assert data(["rm", "@all", "--yes"], capsys)["done"]
    assert len(dl.runs(root)) == 1
    assert len(data(["restore"], capsys)) == 2
    assert main(["restore", "00000001"]) == 0
    assert len(dl.runs(root)) == 2


def test_rm_wants_to_know_which(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["rm", "--yes"]) == 2
    assert "name the runs to remove" in capsys.readouterr().err


def test_gc_frees_what_it_says(root: Path, capsys: pytest.CaptureFixture[str]):
    main(["rm", "00000001", "--yes"])
    copy = root / ".danling" / "code" / "old"
    copy.mkdir(parents=True)
    (copy / "train.py").write_text("x = 1\n" * 100)
    size = sum(path.stat().st_size for path in root.glob(".danling/trash/*/*"))

    told = data(["gc"], capsys)

    assert told == {**told, "done": False, "bytes": size + 600}
    assert {tuple(row["what"]) for row in told["removed"]} >= {("a copy of code",)}
    assert copy.exists()
    only = data(["gc", "--code"], capsys)
    assert only["bytes"] == 600
    assert data(["gc", "--yes"], capsys)["bytes"] == told["bytes"]
    assert not copy.exists()
    assert data(["gc"], capsys)["bytes"] == 0
    assert data(["restore"], capsys) == []


def test_the_age_is_a_duration(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gc", "--older-than", "30 fortnights"]) == 2
    assert "no duration" in capsys.readouterr().err
