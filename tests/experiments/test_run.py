from __future__ import annotations

from pathlib import Path

import pytest

import danling as dl
from danling.errors import RunDirectoryError
from danling.experiments import Run
from tests.support.runs import make_run


def test_commands_to_repeat_and_to_go_on(tmp_path: Path):
    path = make_run(tmp_path)
    run = Run(path)

    assert run.command() == ["python", "train.py"]
    assert run.command(optim__lr=0.2) == ["python", "train.py", "--optim.lr=0.2"]
    assert run.command("resume") == ["python", "train.py", "--resume", str(path)]
    with pytest.raises(ValueError, match="'rerun' and 'resume'"):
        run.command("again")


def test_a_notebook_shows_its_score_and_curve(tmp_path: Path):
    page = Run(make_run(tmp_path, score=0.75))._repr_html_()

    assert "0.75" in page
    assert "<svg" in page


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match=r"it has no run\.json"):
        Run(tmp_path)


def test_two_objects_of_one_directory_are_equal(tmp_path: Path):
    path = make_run(tmp_path)

    assert Run(path) == dl.runs(tmp_path)[0]
    assert len({Run(path), dl.runs(tmp_path)[0]}) == 1
    assert repr(Run(path)) == "<Run aaaaaaaa-bbbbbbbb-00000001 tiny-run finished>"
