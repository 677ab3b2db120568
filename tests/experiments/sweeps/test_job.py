from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.experiments.sweeps.job import Job, runs_of
from tests.support.runs import RECORD, make_run

SCRIPT = "train.py"


def started(root: Path, *words: str, number: int = 1, **changes: Any) -> None:
    launch = {**RECORD["launches"][0], "argv": ["python", *words]}
    make_run(root, number, launches=[launch], **changes)


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--optim.lr=0.001", "--seed=1"),
        ("train.py", "--optim.lr", "1e-3", "--seed", "1"),
        ("-u", "/elsewhere/train.py", "--seed", "1", "--optim.lr", ".001"),
        ("train.py", "--optim.lr=1e-3", "--seed=1", "--resume", "auto", "--project_root=x"),
    ],
)
def test_the_same_flags_are_the_same_configuration(tmp_path: Path, words: tuple[str, ...]):
    started(tmp_path, *words)
    job = Job(0, {"optim.lr": "1e-3", "seed": "1"})

    assert runs_of(job, dl.runs(tmp_path), SCRIPT, "a" * 32) == list(dl.runs(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--optim.lr=0.001"),
        ("train.py", "--optim.lr=0.001", "--seed=2"),
        ("train.py", "--optim.lr=0.001", "--seed=1", "--max_epochs=3"),
        ("other.py", "--optim.lr=0.001", "--seed=1"),
        ("train.py", "lr=0.001"),
    ],
)
def test_other_flags_are_another(tmp_path: Path, words: tuple[str, ...]):
    started(tmp_path, *words)
    job = Job(0, {"optim.lr": "1e-3", "seed": "1"})

    assert runs_of(job, dl.runs(tmp_path), SCRIPT, "a" * 32) == []


def test_other_code_is_another(tmp_path: Path):
    started(tmp_path, "train.py", "--seed", "1")

    assert runs_of(Job(0, {"seed": "1"}), dl.runs(tmp_path), SCRIPT, "c" * 32) == []
