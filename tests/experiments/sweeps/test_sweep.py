"""Each configuration of a sweep is run once, whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import danling as dl
from danling.experiments import Run
from tests.support.sweeps import finish, kill_with_children, start, wait_for_lines

TRAIN = """\
import danling as dl
from danling.testing import TinyRunner

class C(dl.Config):
    experiment_name = "tiny"
    seed = 0
    max_epochs = 3
    monitor = "val/accuracy"
    monitor_mode = "max"
    dataloader = {"batch_size": 4}
    width: int = 1

config = C.parse()
if config.width == 13:
    raise SystemExit("thirteen is not allowed")
TinyRunner(config, default_callbacks=True).train()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_runs_what_is_missing_with_the_code_of_its_beginning(project: Path):
    flags = ("--width", "1,13", "--seed", "0")

    code, out, err = finish(project, *flags)

    assert (code, out) == (1, "1 failed, 1 finished")
    assert "thirteen is not allowed" in err
    (project / "train.py").write_text("raise SystemExit('edited meanwhile')\n")
    code, out, err = finish(project, *flags)
    assert (code, out) == (1, "1 failed, 1 skipped")
    assert "it goes on with that of then" in err
    assert [run.status for run in dl.runs()] == ["finished"]


def test_a_run_started_by_hand_is_not_run_again(project: Path):
    words = ["train.py", "--seed", "4", "--width", "2"]
    subprocess.run([sys.executable, *words], cwd=project, check=True, capture_output=True)

    code, out, _ = finish(project, "--width=2", "--seed", "4")

    assert (code, out) == (0, "1 skipped")


MOMENTS = ["first started", "both started", "first checkpoint", "twenty epochs", "one finished"]


@pytest.mark.parametrize(
    "moment",
    [
        m if m == "first checkpoint" else pytest.param(m, marks=pytest.mark.exhaustive)
        for m in MOMENTS
    ],
)
def test_goes_on_after_it_was_killed_with_its_children(project: Path, moment: str):
    flags = ("--width", "1,2", "--seed", "0", "-j", "2", "--max_epochs", "40")
    process = start(project, *flags)
    wait_for(moment, process, project)
    kill_with_children(process)
    before = {run.id: len(run.launches) for run in found(project)}

    code, out, err = finish(project, *flags)

    assert code == 0, err
    assert sum(int(part.split()[0]) for part in out.split(", ")) == 2
    runs = dl.runs()
    assert sorted(run.settings["width"] for run in runs) == [1, 2]
    assert {run.status for run in runs} == {"finished"}
    assert {run.results[-1]["epoch"] for run in runs} == {40}
    assert before.keys() <= {run.id for run in runs}
    assert all(len(run.launches) <= before.get(run.id, 0) + 1 for run in runs)
    untouched = finish(project, "-C", "other", *flags)
    assert untouched[0] == 0
    for run in runs:
        twin = dl.runs("other").filter(width=run.settings["width"])[0]
        assert run.results == twin.results
        assert run.run_id == twin.run_id


def found(project: Path) -> list[Run]:
    return list(dl.runs()) if (project / "experiments").is_dir() else []


def wait_for(moment: str, process: subprocess.Popen[str], project: Path) -> None:
    """Until the sweep is so far; whatever the machine, the moment is the same."""
    if moment == "first started":
        wait_for_lines(process, "[1/2]")
    elif moment == "both started":
        wait_for_lines(process, "[1/2]", "[2/2]")
    elif moment == "one finished":
        wait_for_lines(process, "[1/2]", "[2/2]", "[")
    else:
        epochs = 1 if moment == "first checkpoint" else 20
        _wait_until(lambda: any(len(run.results) >= epochs for run in found(project)))


def test_a_process_that_outlives_its_sweep_is_waited_for(project: Path):
    flags = ("--width", "1", "--seed", "0", "--max_epochs", "60")
    process = start(project, *flags)
    _wait_until(lambda: any(run.results for run in found(project)))
    process.kill()
    process.communicate()

    code, out, err = finish(project, *flags)

    assert (code, out) in [(0, "1 finished"), (0, "1 skipped")], err
    assert len(dl.runs()) == 1
    assert len(dl.runs()[0].launches) == 1


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
