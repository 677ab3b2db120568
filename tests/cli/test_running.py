from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from danling.cli.main import main
from tests.support.runs import RECORD, make_run


def test_a_command_is_printed_and_its_notes_are_messages(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["resume", "@1", "--current-code"]) == 0

    printed = capsys.readouterr()
    assert printed.out.startswith("python train.py --resume ")
    assert "the folder /nowhere in which it was started is gone" in printed.err


def test_it_is_run_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "train.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)\n")
    launch = {
        **RECORD["launches"][0],
        "argv": [sys.executable, "train.py", "--lr", "1"],
        "cwd": str(tmp_path),
    }
    path = make_run(tmp_path / "experiments", 9, launches=[launch])

    assert main(["resume", "@1", "--exec", "--current-code"]) == 1

    assert f"['--lr', '1', '--resume', '{path}']" in capfd.readouterr().out


def test_code_that_is_nowhere_cannot_be_repeated(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["rerun", "@1"]) == 1
    assert "run this inside a clone of the project" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-j", "0"], "at least one process is needed"),
        (["--optimize", "val/loss", "--trials", "0"], "at least one is needed"),
        (["--optimize", "val/loss", "--launcher", "slurm"], "on this machine"),
        (["--launcher", "slurm", "--slurm", "time"], "write NAME=VALUE"),
        (["--optimize", "val/loss", "--sampler", "best"], "--sampler best"),
    ],
)
def test_what_a_sweep_cannot_do_is_wrong_usage(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "train.py").write_text("")

    assert main(["sweep", "train.py", "--seed", "0..2", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["--optimize", "val/loss"], "optuna", "optuna"),
        (["--launcher", "slurm"], "submitit", "slurm"),
    ],
)
def test_without_the_library_it_says_what_to_install(
    tmp_path: Path,
    words: list[str],
    module: str,
    extra: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "train.py").write_text("")
    monkeypatch.setitem(sys.modules, module, None)

    assert main(["sweep", "train.py", "--seed", "0..2", *words]) == 1
    assert f"pip install 'danling[{extra}]'" in capsys.readouterr().err


def test_a_dry_run_lists_the_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sweep", "train.py", "--lr", "1e-3,1e-4", "--seed", "0..1", "--dry-run"]

    assert main([*words, "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)["data"]
    assert rows[0] == {"lr": "1e-3", "seed": "0"}
    assert len(rows) == 4
    assert not (tmp_path / "experiments").exists()
