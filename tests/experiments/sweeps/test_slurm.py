"""A sweep as a job array on a real SLURM, whose jobs are requeued and meet their time limit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import danling as dl
from danling.errors import ConfigError
from danling.experiments import Run, Runs
from danling.experiments.sweeps.slurm import read_parameters
from tests.support.slurm import missing, slurm
from tests.support.sweeps import finish

TRAIN = """\
import time

import danling as dl
from danling.testing import TinyRunner

class C(dl.Config):
    experiment_name = "tiny"
    seed = 0
    max_epochs = 10
    dataloader = {"batch_size": 4}
    pace: float = 0.0  # seconds per step

config = C.parse()

class Slow(dl.Callback):
    def on_step(self, runner):
        time.sleep(config.pace)

TinyRunner(config, callbacks=[Slow()], default_callbacks=True).train()
"""


def test_parameters_are_those_of_submitit():
    assert read_parameters(["partition=gpu", "time=60", "mem-per-cpu=4G"]) == {
        "partition": "gpu",
        "time": 60,
        "mem_per_cpu": "4G",
    }
    with pytest.raises(ConfigError, match="write NAME=VALUE"):
        read_parameters(["time"])


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    if reason := missing():
        pytest.skip(reason)
    try:
        with slurm(tmp_path_factory.mktemp("slurm") / "daemons") as configuration:
            monkeypatch.setenv("SLURM_CONF", str(configuration))
            yield
            subprocess.run(["scancel", "--quiet", "--user=root"], capture_output=True)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.exhaustive
def test_a_requeued_job_of_the_array_goes_on_in_its_own_directory(cluster: None, project: Path):
    flags = ("--seed", "0,1", "--pace", "0.3", "--launcher", "slurm")
    jobs = submit(project, *flags)
    assert len({job.partition("_")[0] for job in jobs}) == 1  # one array
    wait_until(lambda: any(run.settings["seed"] == 0 and run.checkpoints for run in found()))

    subprocess.run(["scontrol", "requeue", jobs[0]], check=True)
    wait_until(lambda: found().filter(seed=0)[0].status == "preempted")
    wait_until(lambda: all(run.status == "finished" for run in found()), jobs)

    assert [run.settings["seed"] for run in found().sort("seed")] == [0, 1]
    assert len(found().filter(seed=1)[0].launches) == 1
    went_on_alone(found().filter(seed=0)[0], jobs[0], project, "--seed", "0")
    assert finish(project, *flags)[:2] == (0, "2 skipped")


@pytest.mark.exhaustive  # a limit is at least a minute
def test_a_job_at_its_time_limit_goes_on_in_its_own_directory(cluster: None, project: Path):
    jobs = submit(
        project, "--pace", "1.7", "--launcher", "slurm", "--slurm", "time=1",
        "--slurm", "signal_delay_s=15",
    )  # fmt: skip

    wait_until(lambda: [run.status for run in found()] == ["finished"], jobs)

    went_on_alone(found()[0], jobs[0], project)


def submit(project: Path, *flags: str) -> list[str]:
    """Submit a sweep, and return its SLURM jobs."""
    code, out, err = finish(project, *flags, "--json")
    assert code == 0, err
    told = json.loads(out)["data"]
    assert told["counts"] == {"submitted": len(told["jobs"])}
    return [job["slurm"] for job in told["jobs"]]


def went_on_alone(run: Run, job: str, project: Path, *flags: str) -> None:
    """A run was preempted in one job and went on in the same, to what an undisturbed one gives."""
    first, *later = run.launches
    assert first["exit_reason"] == "signal SIGTERM"
    assert later
    counts = [str(number) for number in range(1, len(later) + 1)]
    assert [launch["slurm"]["SLURM_RESTART_COUNT"] for launch in later] == counts
    slurms = [launch["slurm"] for launch in run.launches]
    if "_" in job:
        told = {(each["SLURM_ARRAY_JOB_ID"], each["SLURM_ARRAY_TASK_ID"]) for each in slurms}
        assert told == {tuple(job.split("_"))}
    command = [sys.executable, "train.py", "--project_root", "alone", *flags]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (twin,) = dl.runs("alone")
    assert [result["train"] for result in run.results] == [r["train"] for r in twin.results]
    weights, others = (dl.read_checkpoint(r.checkpoint("latest"))["model"] for r in (run, twin))
    assert all(weights[key].equal(others[key]) for key in weights)


def found() -> Runs:
    return dl.runs() if Path("experiments").is_dir() else Runs([])


def wait_until(condition: object, jobs: list[str] | None = None) -> None:
    """Poll; jobs that were put back into the queue need not wait for their two minutes."""
    assert callable(condition)
    pending: dict[str, float] = {}
    deadline = time.monotonic() + 200
    while not condition():
        if time.monotonic() > deadline:
            queue = subprocess.run(["squeue"], capture_output=True, text=True).stdout
            logs = [
                path.read_text()[-2000:] for path in Path().glob("experiments/.danling/**/*.err")
            ]
            raise AssertionError(f"{queue} {dl.runs()} {logs}")
        for job in jobs or []:
            release(job, pending)
        time.sleep(0.5)


def release(job: str, pending: dict[str, float]) -> None:
    """Let a job start some seconds after it went back to the queue.

    At once SLURM would not start it: its credential was revoked in the same second.
    """
    command = ["squeue", "--noheader", "--states=PENDING", "--format=%i", f"--jobs={job}"]
    if not subprocess.run(command, capture_output=True).stdout:
        pending.pop(job, None)
    elif time.monotonic() - pending.setdefault(job, time.monotonic()) > 5:
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(update, capture_output=True)
