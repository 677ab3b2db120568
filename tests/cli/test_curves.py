from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from danling.cli.main import main


def test_curves_are_drawn_with_what_tells_them_apart(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["plot", "@1", "@2", "-m", "val.accuracy"]) == 0

    printed = capsys.readouterr().out
    assert "val.accuracy" in printed
    assert "optim.lr=0.1" in printed
    assert any("\u2801" <= char <= "\u28ff" for char in printed)
    assert "\x1b" not in printed


def test_seeds_are_a_band(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plot", "--seeds", "--json"]) == 0

    curves = json.loads(capsys.readouterr().out)["data"]["curves"]
    (band,) = [curve for label, curve in curves.items() if "0.1" in label]
    assert band["values"] == pytest.approx([0.3, 0.6])
    assert band["low"] == [0.25, 0.5]
    assert band["high"] == [0.35, 0.7]
    assert main(["plot", "--seeds", "--log"]) == 0


def test_an_unknown_curve_is_an_error_with_those_there_are(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["plot", "-m", "val.f1"]) == 2
    assert "no run has a curve 'val.f1': there are val/accuracy" in capsys.readouterr().err


def test_without_the_library_it_says_what_to_install(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "plotext", None)

    assert main(["plot"]) == 1
    assert "pip install 'danling[cli]'" in capsys.readouterr().err
    assert main(["plot", "--json"]) == 0


def test_watching_ends_with_the_last_run(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plot", "--watch"]) == 0
