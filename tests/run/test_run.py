"""Which directory a run works in, whatever changed around it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from danling.callbacks import LambdaCallback
from danling.errors import RunLockedError
from danling.files.failpoints import set_failpoints
from danling.run.search import find_runs
from tests.support.repositories import commit_all, git
from tests.support.resume_harness import in_process
from tests.support.resume_runs import STEPS, interrupted, log, make_runner, record, trained, weights


def test_a_run_goes_on_with_other_code_as_the_same_run_and_says_so(project: Path):
    first = interrupted(9)
    before = git(project, "rev-parse", "HEAD")
    (project / "train.py").write_text("lr = 0.2\nwarmup = 3\n")
    after = commit_all(project)

    again = trained(resume=str(first.dir))

    assert again.id == first.id
    assert again.global_step == 2 * STEPS
    assert "the code has changed since the run began" in log(again)
    assert before in log(again)
    assert after in log(again)
    assert "1 file changed, 2 insertions(+), 1 deletion(-)" in log(again)
    assert record(again)["code"]["commit"] == before
    assert "2 insertions(+)" in record(again)["launches"][1]["code_change"]


def test_a_commit_during_a_run_leaves_it_the_same_run(project: Path):
    numbers: list[str] = []

    def commit(runner: object) -> None:
        (project / "train.py").write_text(f"lr = {len(numbers)}\n")
        numbers.append(commit_all(project))

    runner = trained([LambdaCallback(name="commit", on_epoch_start=commit)], resume="auto")

    assert len(numbers) == 2
    assert record(runner)["code"]["commit"] not in numbers
    assert record(runner)["experiment_uuid"] == str(runner.experiment_uuid)
    assert [run.path.name for run in find_runs("experiments")] == [runner.dir.name]


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


# Several processes


def start_all(resume: str, count: int) -> list[str]:
    """Start trainings that decide at the same moment; returns what came of each."""
    together = time.monotonic() + 0.3
    children = []
    for number in range(count):
        if (pid := os.fork()) == 0:
            train_and_tell(resume, number, together)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return [Path(f"told-{number}").read_text() for number in range(count)]


def train_and_tell(resume: str, number: int, together: float) -> None:
    try:
        torch.set_num_threads(1)
        # all have looked when the first one locks, and none waits until it has ended
        set_failpoints("run.before_lock=sleep:0.2@1,run.after_lock=sleep:0.8")
        runner = make_runner(resume=resume)
        time.sleep(max(0, together - time.monotonic()))
        runner.train()
        told = json.dumps([runner.dir.name, runner.resume_report is not None, log(runner)])
    except RunLockedError as error:
        told = f"locked: {error}"
    finally:
        Path(f"told-{number}").write_text(told)
        os._exit(0)


def test_of_processes_that_start_at_once_one_goes_on_and_the_others_begin_runs_of_their_own():
    first = interrupted(9)

    told = [json.loads(text) for text in start_all("auto", 3)]

    directories = [directory for directory, _, _ in told]
    assert len(set(directories)) == 3
    assert [d for d, resumed, _ in told if resumed] == [first.dir.name]
    fresh = [lines for directory, _, lines in told if directory != first.dir.name]
    assert all(f"{first.dir.name} is in use by process" in lines for lines in fresh)
    assert all("a new run starts" in lines for lines in fresh)
    assert {run.status for run in find_runs("experiments")} == {"finished"}


def test_who_asked_for_that_very_run_is_refused_it_while_another_has_it():
    first = interrupted(9)

    told = start_all(str(first.dir), 2)

    assert sorted(text.startswith("locked") for text in told) == [False, True]
    assert sum(f"{first.dir.name} is in use by process" in text for text in told) == 1


# A death before there is anything


def die_at(place: str) -> None:
    set_failpoints(f"{place}=kill")
    make_runner(resume="auto").train()


@pytest.mark.parametrize(
    "place",
    [
        "run.after_directory",
        pytest.param("run.before_lock", marks=pytest.mark.exhaustive),
        pytest.param("run.after_lock", marks=pytest.mark.exhaustive),
        "file.before_replace",
    ],
)
def test_a_death_before_the_run_is_recorded_disturbs_no_later_start(place: str):
    assert in_process(die_at, place) == -signal.SIGKILL
    (left,) = Path("experiments").glob("danling-*")

    assert find_runs("experiments") == []
    first = interrupted(9, resume="auto")
    again = trained(resume="auto")

    assert first.dir.name != left.name
    assert again.dir == first.dir
    assert "found no unfinished run" in log(again)
    assert weights(again) == weights(trained())
    assert not (left / "run.json").exists()
    assert Path("experiments/.gitignore").read_text() == "*\n"


def test_what_a_death_in_a_write_left_behind_is_gone_after_the_next_start():
    assert in_process(die_at, "file.before_replace") == -signal.SIGKILL
    (left,) = Path("experiments").glob("danling-*")
    assert list(left.rglob(".*.tmp"))

    def die_later() -> None:
        set_failpoints("file.before_replace=kill@4")
        make_runner(resume="auto").train()

    assert in_process(die_later) == -signal.SIGKILL
    again = trained(resume="auto")

    assert again.dir.name != left.name
    assert list(again.dir.rglob(".*.tmp")) == []
