from __future__ import annotations

import json
from pathlib import Path

import pytest

from danling.cli.main import main


def test_a_run_that_is_not_what_it_says_is_bad(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", "@1"]) == 1  # its ids are made up

    printed = capsys.readouterr().out
    assert "BAD ids" in printed
    assert "ok  files" in printed
    main(["verify", "@1", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["data"]
    assert not row["ok"]
    assert {"subject", "ok", "text"} == row["findings"][0].keys()


def test_the_doctor_looks_at_the_machine(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    assert main(["doctor", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)["data"]
    assert found["versions"]["torch"][0].isdigit()
    assert found["accelerate"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_* variables" in found["accelerate"]["order"]
    assert found["disk"]["runs"] == str(root)
    for ability in ("locks", "hard links", "symbolic links", "syncs"):
        assert found["disk"][ability] == "yes"
    assert not list(root.glob(".doctor-*"))


def test_the_doctor_works_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    assert "there is no folder" in capsys.readouterr().out
