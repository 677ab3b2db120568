"""Sweeps: which configurations, and that each is run once whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import danling as dl
from danling.errors import ConfigError
from danling.experiments.sweeps.grid import configurations, drawn, read_axes
from tests.support.sweeps import finish, kill_with_children, start

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


def test_lists_and_ranges_of_a_command_line():
    axes = read_axes(["--optim.lr", "1e-3,1e-4", "--seed=0..2", "--betas", "[1, 2],[3, 4]"])

    assert axes == {
        "optim.lr": ["1e-3", "1e-4"],
        "seed": ["0", "1", "2"],
        "betas": ["[1, 2]", "[3, 4]"],
    }
    assert len(configurations(axes)) == 12
    assert configurations(axes)[0] == {"optim.lr": "1e-3", "seed": "0", "betas": "[1, 2]"}


def test_a_grid_of_a_file(tmp_path: Path):
    (tmp_path / "grid.yaml").write_text("optim.lr: [0.1, 0.01]\nseed: [0, 1]\n")

    assert read_axes([], "grid.yaml") == {"optim.lr": ["0.1", "0.01"], "seed": ["0", "1"]}


def test_draws_are_repeated_with_their_seed():
    axes = read_axes(["--optim.lr", "1e-5..1e-1:log", "--width", "8,16"])

    found = drawn(axes, 20, seed=1)

    assert found == drawn(axes, 20, seed=1) != drawn(axes, 20, seed=2)
    assert all(1e-5 <= float(row["optim.lr"]) <= 1e-1 for row in found)
    assert {row["width"] for row in found} == {"8", "16"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lr"], "unexpected argument 'lr'"),
        (["--lr"], "--lr needs values"),
        (["--lr", "--seed"], "--lr needs values"),
        (["--seed", "4..0"], "no range"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_axes(flags)


def test_a_range_of_fractions_has_no_steps():
    with pytest.raises(ConfigError, match="--random"):
        configurations(read_axes(["--lr", "1e-5..1e-1"]))


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


MOMENTS = [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "moment",
    [m if m == 3 else pytest.param(m, marks=pytest.mark.exhaustive) for m in MOMENTS],
)
def test_goes_on_after_it_was_killed_with_its_children(project: Path, moment: int):
    """The moments are numbers of events: lines that the sweep prints."""
    flags = ("--width", "1,2", "--seed", "0", "-j", "2", "--max_epochs", "40")
    process = start(project, *flags)
    assert process.stderr is not None
    for _ in range(min(moment, 2)):
        process.stderr.readline()
    _wait_for_checkpoints(project, moment - 2)
    kill_with_children(process)

    code, _, err = finish(project, *flags)

    assert code == 0, err
    runs = dl.runs()
    assert sorted(run.settings["width"] for run in runs) == [1, 2]
    assert {run.status for run in runs} == {"finished"}
    assert {run.results[-1]["epoch"] for run in runs} == {40}
    untouched = finish(project, "-C", "other", *flags)
    assert untouched[0] == 0
    for run in runs:
        twin = dl.runs("other").filter(width=run.settings["width"])[0]
        assert run.results == twin.results
        assert run.run_id == twin.run_id


def test_a_process_that_outlives_its_sweep_is_waited_for(project: Path):
    flags = ("--width", "1", "--seed", "0", "--max_epochs", "60")
    process = start(project, *flags)
    assert process.stderr is not None
    process.stderr.readline()
    _wait_for_checkpoints(project, 1)
    process.kill()
    process.communicate()

    code, out, err = finish(project, *flags)

    assert (code, out) in [(0, "1 finished"), (0, "1 skipped")], err
    assert len(dl.runs()) == 1
    assert len(dl.runs()[0].launches) == 1


def _wait_for_checkpoints(project: Path, count: int) -> None:
    """Until that many checkpoints were written; at once if it is none."""
    deadline = time.monotonic() + 120
    while count > 0 and time.monotonic() < deadline:
        found = list(project.glob("experiments/*/checkpoints/latest.pth"))
        if len(found) >= min(count, 1):
            return
        time.sleep(0.01)
