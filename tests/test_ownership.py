"""Which directory a run works in, whatever changed around it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.repositories import commit_all, git, make_repository
from tests.resume_runs import STEPS, interrupted, log, make_runner, record, trained


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the main script in it."""
    folder = make_repository(tmp_path / "project")
    script = str(folder / "train.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_goes_on_with_other_code_as_the_same_run_and_says_so(project: Path):
    first = interrupted(9)
    before = git(project, "rev-parse", "HEAD")
    (project / "train.py").write_text("lr = 0.2\n")
    after = commit_all(project)

    again = trained(resume=str(first.dir))

    assert again.id == first.id
    assert again.global_step == 2 * STEPS
    assert "the code has changed since the run began" in log(again)
    assert before in log(again)
    assert after in log(again)
    assert record(again)["code"]["commit"] == before


def test_auto_takes_no_run_of_other_code(project: Path):
    first = interrupted(9, resume="auto")
    (project / "train.py").write_text("lr = 0.2\n")
    commit_all(project)

    assert trained(resume="auto").dir != first.dir


def test_a_restarted_job_goes_on_in_its_directory_whatever_changed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first = interrupted(9)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    again = trained(max_grad_norm=0.5)

    assert again.dir == first.dir
    assert "restarted by the same job" in log(again)
    assert "config: max_grad_norm was None, now it is 0.5" in log(again)
    assert record(again)["launches"][1]["resumed"]["changes"] == [
        "config: max_grad_norm was None, now it is 0.5"
    ]


def test_the_directory_of_a_resumed_run_survives_a_change_of_folder(tmp_path: Path):
    first = interrupted(9)
    runner = make_runner(resume=os.path.relpath(first.dir))

    with runner:
        os.chdir("/")
        runner.train()

    assert runner.dir == first.dir
    assert runner.checkpoints.load()[0]["data"]["global_step"] == 2 * STEPS


def test_an_interrupted_run_is_preferred_over_a_newer_one_that_ended():
    first = interrupted(9)
    trained()

    assert trained(resume="auto").dir == first.dir


def test_two_runs_of_one_process_have_their_own_directories():
    one, other = make_runner(), make_runner()

    with one:
        other.train()
        one.train()

    assert one.dir != other.dir
    assert one.global_step == other.global_step == 2 * STEPS
