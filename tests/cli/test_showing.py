from __future__ import annotations

import json
from pathlib import Path

import pytest

from danling.cli.main import main
from tests.support.runs import RECORD, make_run


def test_everything_is_on_one_screen(root: Path, capsys: pytest.CaptureFixture[str]):
    main(["tag", "@1", "paper"])
    main(["note", "@1", "odd \x1b[2J"])
    capsys.readouterr()

    assert main(["show", "@1"]) == 0

    printed = capsys.readouterr().out
    for text in (
        "status       finished",
        "score        val.accuracy 0.9 at epoch 2",
        "tags         paper",
        "odd \\x1b[2J",
        "optim.lr     1",
        "resume       python train.py --resume",
    ):
        assert text in printed


def test_every_launch_says_where_it_was_and_why_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = {**RECORD["launches"][0], "start_step": 0, "end_step": 14}
    slurm = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    launches = [
        {**first, "slurm": slurm, "exit_reason": "signal SIGTERM"},
        {
            **first,
            "slurm": {**slurm, "SLURM_RESTART_COUNT": "1"},
            "start_step": 14,
            "end_step": 40,
            "exit_reason": "finished",
        },
        {**first, "slurm": 3, "start_step": None, "end_step": None, "exit_reason": None},
    ]
    make_run(tmp_path / "experiments", launches=launches)

    assert main(["show", "@1"]) == 0

    printed = capsys.readouterr().out
    table = printed[printed.index("launch  host") :].splitlines()[:4]
    assert [line.split(None, 2)[2] for line in table] == [
        "slurm          steps     ended",
        "7_1            0 to 14   signal SIGTERM",
        "7_1 restart 1  14 to 40  finished",
        "running",
    ]


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--path", "tiny-run-aaaaaaaa"), ("--config", "optim.lr"), ("--env", "host         node1")],
)
def test_a_part_alone(root: Path, option: str, expected: str, capsys: pytest.CaptureFixture[str]):
    assert main(["show", "@1", option]) == 0
    assert expected in capsys.readouterr().out


def test_the_patch_is_byte_for_byte_what_git_applies(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    patch = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\t\n+b \n"
    (path,) = root.glob("*-00000003")
    (path / "metadata").mkdir()
    (path / "metadata" / "code.patch").write_text(patch)

    main(["show", "@1", "--patch"])

    assert capsys.readouterr().out == patch


def test_two_runs_differ_in_five_lines(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["diff", "@1", "@2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "optim.lr 1 → 0.1" in lines[0]
    assert main(["diff", "@1", "@2", "--exit-code"]) == 1
    assert main(["diff", "@1", "@1", "--exit-code"]) == 0
    capsys.readouterr()
    assert main(["diff", "@1", "@2", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["data"]["config"]
    assert {"key": "optim.lr", "before": 1.0, "after": 0.1} in changes
