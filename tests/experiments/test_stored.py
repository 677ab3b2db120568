from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from danling.errors import CheckpointError, MetricError
from danling.experiments.stored import StoredRun
from danling.run.lock import DirectoryLock
from tests.support.runs import make_run


def test_what_training_wrote_is_read(tmp_path: Path):
    run = StoredRun(make_run(tmp_path, 7, score=0.75, config={"optim": {"lr": 0.2}}))

    assert run.id == "aaaaaaaa-bbbbbbbb-00000007"
    assert (run.name, run.status, run.reason) == ("tiny-run", "finished", None)
    assert run.settings["optim.lr"] == 0.2
    assert run.seed == 0
    assert run.commit == "0" * 40
    assert not run.dirty
    assert run.duration == 60
    assert run.created is not None
    assert run.created.utcoffset() == timedelta(0)
    assert [result["epoch"] for result in run.results] == [1, 2]
    assert run.best == run.latest == run.results[1]
    assert (run.monitor, run.monitor_mode, run.score) == ("val.accuracy", "max", 0.75)
    assert run.metric("val/loss") == 0.25
    assert run.metric_names == ["val/accuracy"]
    assert run.history("val.accuracy") == ([4, 8], [0.375, 0.75], [1.0, 1.0])
    assert run.size == sum(path.stat().st_size for path in run.path.iterdir())


def test_a_curve_that_is_not_there_is_an_error_with_the_nearest(tmp_path: Path):
    with pytest.raises(MetricError, match="did you mean 'val/accuracy'"):
        StoredRun(make_run(tmp_path)).history("val/acuracy")


def test_a_run_is_running_while_its_lock_is_held(tmp_path: Path):
    path = make_run(tmp_path, status="running")
    assert StoredRun(path).status == "killed"

    with DirectoryLock(path):
        # a lock does not keep out its own process: another one asks
        child = status_in_another_process(path)

    assert child == "running"


def status_in_another_process(path: Path) -> str:
    program = (
        "import sys; from danling.experiments.stored import StoredRun;"
        "print(StoredRun(sys.argv[1]).status)"
    )
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        ("finished", None, True),
        ("stopped", "no better score in 5 epochs", True),
        ("stopped", "max_time of 60 s is reached", False),
        ("failed", "ValueError: x", False),
        ("preempted", "signal SIGTERM", False),
    ],
)
def test_what_was_stopped_for_want_of_time_has_not_ended_well(
    tmp_path: Path, status: str, reason: str | None, expected: bool
):
    run = StoredRun(make_run(tmp_path, status=status, reason=reason))

    assert run.has_ended_well is expected


def test_without_files_there_are_no_results(tmp_path: Path):
    run = StoredRun(make_run(tmp_path, score=None))

    assert run.results == []
    assert [run.best, run.latest, run.score] == [None] * 3
    assert [*run.metric_names, *run.checkpoints, *run.log()] == []
    with pytest.raises(CheckpointError, match="has no checkpoint 'best'"):
        run.checkpoint()


def test_the_end_of_the_log(tmp_path: Path):
    run = StoredRun(make_run(tmp_path))
    (run.path / "run.log").write_text("".join(f"{n}\n" for n in range(20_000)))

    assert run.log(2) == ["19998", "19999"]
    assert run.log(0) == []


def test_a_folder_of_checkpoints_cannot_lead_out_of_the_run(tmp_path: Path):
    path = make_run(tmp_path / "experiments")
    (path / "runner.json").unlink()
    (path / "runner.yaml").write_text("checkpoint_dir_name: ../../secret\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "best.pth").write_text("")

    assert StoredRun(path).checkpoints == []


def test_nan_and_infinities_are_numbers_again(tmp_path: Path):
    path = make_run(tmp_path)
    (path / "best.json").write_text(json.dumps({"val": {"accuracy": "Infinity"}}))

    assert StoredRun(path).score == float("inf")
