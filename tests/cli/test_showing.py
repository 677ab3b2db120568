from __future__ import annotations

import json
from pathlib import Path

import pytest

from danling.cli.main import main
from tests.support.runs import make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "experiments"
    for number, (rate, score) in enumerate([(0.1, 0.5), (0.1, 0.7), (1.0, 0.9)], 1):
        config = {"optim": {"lr": rate}, "seed": number % 2}
        make_run(root, number, score=score, config=config, run_id=f"{number:032x}")
    return root


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
