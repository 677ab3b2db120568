from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import danling as dl
from danling.errors import RunDirectoryError
from danling.experiments.removal import (
    empty_trash,
    in_trash,
    move_to_trash,
    parents,
    plan_checkpoints,
    protection,
    restore,
)
from danling.testing import TinyRunner
from tests.support.runs import RECORD, make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "experiments"
    child = {**RECORD["launches"][0], "resumed": {"run": f"{2:08x}-0000-4000-8000-000000000000"}}
    make_run(root, 1, score=0.9)
    make_run(root, 2, score=0.5)
    make_run(root, 3, score=0.4, launches=[child])
    make_run(root, 4, score=0.3)
    make_run(root, 5, score=0.2)
    dl.runs(root)["00000004"].tag("paper")
    return root


def test_the_best_the_parents_and_the_tagged_are_kept(root: Path):
    runs = dl.runs(root)
    reasons = {int(run.uuid[:8], 16): protection(run, runs) for run in runs}

    assert reasons[1] == "it is the best"
    assert reasons[2] == "another run began from its checkpoint"
    assert reasons[3] is reasons[5] is None
    assert str(reasons[4]).startswith("it is tagged paper")
    assert parents(runs) == {runs["00000002"].uuid}


def test_to_the_trash_back_and_for_good(root: Path):
    run = dl.runs(root)["00000005"]

    trashed = move_to_trash(run, root)

    assert not run.path.exists()
    assert [each.uuid for each in in_trash(root)] == [run.uuid]
    assert restore(in_trash(root)[0], root) == run.path
    assert not trashed.exists()
    move_to_trash(dl.runs(root)["00000005"], root)
    empty_trash(in_trash(root))
    assert len(in_trash(root)) == 0
    assert len(dl.runs(root)) == 4


def test_a_name_that_was_taken_since_is_not_overwritten(root: Path):
    run = dl.runs(root)["00000005"]
    move_to_trash(run, root)
    make_run(root, 5)

    with pytest.raises(RunDirectoryError):
        restore(in_trash(root)[0], root)

    assert len(in_trash(root)) == 1


def test_a_run_of_another_folder_is_not_moved(root: Path, tmp_path: Path):
    other = make_run(tmp_path / "elsewhere")

    with pytest.raises(RunDirectoryError, match="is not in"):
        move_to_trash(dl.runs(other.parent)[0], root)

    assert other.is_dir()


def test_a_run_whose_lock_is_held_stays(root: Path):
    run = dl.runs(root)["00000005"]
    with held(run.path), pytest.raises(RunDirectoryError):
        move_to_trash(run, root)

    assert run.path.is_dir()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process works on the run."""
    program = (
        "import sys; from danling.run.lock import DirectoryLock;"
        "lock = DirectoryLock(sys.argv[1]); lock.__enter__(); print('held', flush=True);"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield
        child.kill()


def test_of_a_finished_run_its_best_checkpoint_is_enough(tmp_path: Path):
    for seed in (0, 1):
        TinyRunner({"seed": seed, "max_epochs": 3}, default_callbacks=True).train()
    runs = dl.runs()

    plans = plan_checkpoints(list(runs), runs, keep_best=1)

    (plan,) = plans
    assert plan.run != runs.best()
    assert not any(path.stem == "best" for path in plan.files)
    before = {path: path.stat().st_ino for path in plan.run.path.glob("checkpoints/*.pth")}
    told = plan.size
    assert plan.carry_out() == told > 0
    assert {path.name for path in before if path.exists()} == {"best.pth"}
    assert plan_checkpoints(list(runs), runs, keep_best=2) == []
    assert plan_checkpoints(list(runs), runs, keep_best=0, older_than=3600) == []
