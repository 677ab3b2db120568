from __future__ import annotations

from pathlib import Path

import pytest

from danling.cli.output import Output


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch):
    assert not Output().colours  # this is no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Output().colours
    assert not Output(no_color=True).colours
    monkeypatch.setenv("NO_COLOR", "")
    assert not Output().colours


def test_a_table_leaves_out_empty_columns_and_escapes(capsys: pytest.CaptureFixture[str]):
    Output().table(["a", "empty", "b"], [["1\x1b[31m", "", "x"], ["22", "", "y\nz"]])

    assert capsys.readouterr().out.splitlines() == [
        "a          b",
        "1\\x1b[31m  x",
        "22         y\\nz",
    ]


def test_wide_letters_fill_two_cells(capsys: pytest.CaptureFixture[str]):
    Output().table(["name", "x"], [["大きさ", "1"], ["abcdef", "2"]])

    assert capsys.readouterr().out.splitlines() == ["name    x", "大きさ  1", "abcdef  2"]


def test_lines_are_cut_at_the_width_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "12")
    output = Output()
    output.is_terminal = True

    output.table(["first", "second"], [["12345678", "123456789"]])
    output.table(["first"], [["大大大大大大大"]])

    assert capsys.readouterr().out.splitlines() == [
        *("first     s…", "12345678  1…", "first", "大大大大大…"),
    ]


def test_an_error_keeps_its_lines_and_escapes_the_rest(capsys: pytest.CaptureFixture[str]):
    Output().error("first\nsecond\x1b[2J")

    assert capsys.readouterr().err == "danling: first\nsecond\\x1b[2J\n"


def test_json_never_has_a_bare_nan(root: Path, capsys: pytest.CaptureFixture[str]):
    Output(json=True).data({"loss": float("nan")})

    assert '"loss": "NaN"' in capsys.readouterr().out
