from __future__ import annotations

from pathlib import Path

import pytest

from danling.errors import RunDirectoryError
from danling.experiments import Run
from danling.experiments.repeat.commands import Command, resumed, split_command, text_of
from tests.support.runs import RECORD, make_run


@pytest.mark.parametrize(
    ("argv", "script", "arguments", "is_module"),
    [
        (["python", "train.py", "--lr", "1"], "train.py", ["--lr", "1"], False),
        (["python", "-u", "-W", "error", "train.py"], "train.py", [], False),
        (["python", "-m", "pkg.train", "-x"], "pkg.train", ["-x"], True),
    ],
)
def test_the_parts_of_a_command(
    argv: list[str], script: str, arguments: list[str], is_module: bool
):
    parts = split_command(argv)

    assert parts is not None
    assert (parts.script, parts.arguments, parts.is_module) == (script, arguments, is_module)
    assert parts.argv == argv


@pytest.mark.parametrize("argv", [["python"], ["python", "-c", "print(1)"], []])
def test_a_command_without_a_script_has_no_parts(argv: list[str]):
    assert split_command(argv) is None


def test_a_command_can_be_pasted_into_a_shell():
    command = Command(["python", "a b.py"], Path("/my place"), {"PYTHONPATH": "x y"})

    assert str(command) == "cd '/my place' && PYTHONPATH='x y' python 'a b.py'"


def test_a_folder_that_is_gone_is_said(tmp_path: Path):
    run = Run(make_run(tmp_path))

    command = resumed(run)

    assert command.cwd is None
    assert command.argv[-2:] == ["--resume", str(run.path)]
    assert "the folder /nowhere in which it was started is gone" in command.notes[0]


def test_a_folder_that_is_there_is_gone_to(tmp_path: Path):
    launch = {**RECORD["launches"][0], "cwd": str(tmp_path)}
    run = Run(make_run(tmp_path / "experiments", launches=[launch]))

    assert resumed(run).cwd == tmp_path


def test_without_a_command_line_there_is_none(tmp_path: Path):
    run = Run(make_run(tmp_path, launches=[]))

    with pytest.raises(RunDirectoryError):
        resumed(run)


def test_values_are_written_as_flags_take_them():
    assert [text_of(value) for value in ("a b", 0.1, True, None, [1, 2])] == [
        "a b",
        "0.1",
        "true",
        "null",
        "[1, 2]",
    ]
