"""The examples do what they say, as a newcomer runs them."""

from __future__ import annotations

import ast
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(example: str, *arguments: str) -> str:
    """What an example prints when it runs in the empty working directory."""
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def only_run(root: Path) -> Path:
    (directory,) = (path for path in (root / "experiments").iterdir() if path.is_dir())
    return directory


def test_digits_is_learned_in_under_a_minute(tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    printed = run("digits.py")

    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    match = re.search(r"best validation accuracy: (\S+)%\ntest accuracy: +(\S+)%", printed)
    assert match is not None
    assert float(match[1]) > 97
    assert float(match[2]) > 97
    assert after.ru_utime - before.ru_utime < 60  # of one thread, however busy the machine is
    assert str(only_run(tmp_path).name) in printed
    assert "tensorboard --logdir experiments" in printed


def test_digits_prints_a_row_per_epoch_and_obeys_the_command_line(tmp_path: Path):
    printed = run("digits.py", "--max_epochs", "2", "--optim.lr", "1e-2")

    rows = re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ +[\d.]+%$", printed, re.MULTILINE)
    config = (only_run(tmp_path) / "runner.yaml").read_text()
    assert rows == ["1", "2"]
    assert re.search(r"^ +lr: 0?\.?01|1e-0?2", config, re.MULTILINE)


def test_own_callback_logs_its_value_and_stops_at_its_limit(tmp_path: Path):
    printed = run("own_callback.py", "--time_limit", "0.2", "--max_epochs", "100000")

    lines = (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()
    tag = "train/update_ratio"
    ratios = [row[tag] for row in map(json.loads, lines) if tag in row]
    assert "stopped because 0.2 seconds are over" in printed
    assert ratios
    assert all(0 < ratio < 1 for ratio in ratios)


def test_own_loop_skips_easy_batches_and_still_gets_everything(tmp_path: Path):
    printed = run("own_loop.py", "--max_epochs", "4")

    skipped = [int(count) for count in re.findall(r"(\d+) easy batches skipped", printed)]
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    accuracy = re.search(r"best validation accuracy (\S+)%", printed)
    assert len(skipped) == len(results) <= 4
    assert skipped[0] < skipped[-1]
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert (only_run(tmp_path) / "checkpoints" / "best.pth").exists()


def test_language_model_learns_to_predict_letters(tmp_path: Path):
    printed = run("language_model.py", "--max_steps", "120", "--evaluate_every", "60 steps")

    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    bits = [result["val"]["bits_per_letter"] for result in results if "val" in result]
    assert [result["global_step"] for result in results if "val" in result] == [60, 120]
    assert bits[1] < bits[0] < 6.7  # a guess among 103 letters costs 6.7
    assert bits[1] < 4.3
    assert f"{bits[1]:.2f} bits per letter" in printed


def test_resume_ends_with_the_same_weights_as_without_the_crash():
    printed = run("resume.py")

    assert "killed at step 100: exit code -9" in printed
    assert "went on from latest.pth, exact: True" in printed
    assert "the weights are equal, bit for bit" in printed


@pytest.mark.parametrize(
    "example",  # what the recipes do is seen in tests/recipes
    sorted(
        path.relative_to(EXAMPLES).as_posix()
        for folder in (EXAMPLES, EXAMPLES / "recipes")
        for path in folder.glob("*.py")
    ),
)
def test_an_example_is_short_besides_its_docstring(example: str):
    text = (EXAMPLES / example).read_text(encoding="utf-8")
    end_of_docstring = ast.parse(text).body[0].end_lineno or 0

    assert len(text.splitlines()) - end_of_docstring <= 80
