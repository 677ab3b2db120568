"""The launchers that people use: how they start a run, end it, and start it again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.processes import (
    ROOT,
    accelerate_launch,
    free_port,
    launcher_environment,
    torchrun,
)

pytestmark = pytest.mark.distributed

EXAMPLE = ROOT / "examples" / "distributed.py"

SCRIPT = """
import os, signal, sys, time
import torch, danling as dl
from danling.testing import TinyRunner
from danling.callbacks import ModelCheckpoint

mode, attempt = sys.argv[1], int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

class Event(dl.Callback):
    priority = 1000
    def on_step(self, runner):
        time.sleep(0.02)
        if runner.global_step != 5 or attempt:
            return
        print(f"step 5 on rank {runner.rank}", flush=True)
        if mode == "raise" and runner.rank == 1:
            raise ZeroDivisionError("on purpose")
        if mode == "kill" and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "alone" and runner.rank == 0:
            runner.save_checkpoint()

config = {"project_root": "experiments", "max_epochs": 40, "poll_interval": 2}
runner = TinyRunner(config, callbacks=[Event(), ModelCheckpoint(every="1 step")],
                    default_callbacks=True)
assert runner.world_size == 2, runner.world_size
if mode == "finish" or attempt:
    runner.config.max_epochs = 3
runner.train()
if runner.is_main_process:
    print("finished at", runner.global_step, runner.resume_report)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def per_node(*args: object) -> list[object]:
    return ["--nproc-per-node", 2, "--master-port", free_port(), *args]


def multi_gpu(*args: object) -> list[object]:
    return ["--multi_gpu", "--num_processes", 2, "--main_process_port", free_port(), *args]


LAUNCHERS = {"torchrun": (torchrun, per_node), "accelerate": (accelerate_launch, multi_gpu)}


def run_json(folder: Path) -> dict[str, object]:
    (path,) = folder.glob("experiments/*/run.json")
    data: dict[str, object] = json.loads(path.read_text())
    return data


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_example_runs_on_two_processes(launcher: str, tmp_path: Path) -> None:
    launch, options = LAUNCHERS[launcher]

    finished = launch(*options(EXAMPLE, "--max_epochs", 2))

    assert finished.returncode == 0, finished.stdout
    assert "2 processes, 38 steps of 64" in finished.stdout
    accuracies = re.findall(r"(?:accuracy|them): ([\d.]+)%", finished.stdout)
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    assert float(accuracies[0]) > 80
    assert run_json(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("mode", ["raise", pytest.param("kill", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.exhaustive)]
)
def test_a_rank_that_fails_ends_the_run(
    launcher: str, mode: str, script: Path, tmp_path: Path
) -> None:
    launch, options = LAUNCHERS[launcher]

    finished = launch(*options(script, mode))

    assert finished.returncode == 1, finished.stdout
    assert run_json(tmp_path)["status"] == "failed", finished.stdout
    if mode == "raise":
        first = finished.stdout[finished.stdout.index("Traceback") :]
        assert first.index("ZeroDivisionError: on purpose") < (first + "rank0]").index("rank0]")


def test_a_call_on_one_rank_alone_ends_the_run(script: Path) -> None:
    """Although a collective is left open: the process must be able to exit."""
    finished = torchrun(*per_node(script, "alone"))

    assert finished.returncode == 1
    assert "rank 0 is in save_checkpoint() while rank 1 is in" in finished.stdout


def test_torchrun_restarts_a_run_in_its_own_directory(script: Path, tmp_path: Path) -> None:

    finished = torchrun("--standalone", "--nproc-per-node", 2, "--max-restarts", 1, script, "raise")

    assert finished.returncode == 0, finished.stdout
    launches = run_json(tmp_path)["launches"]
    assert isinstance(launches, list)
    assert [launch["start_step"] for launch in launches] == [0, 4], finished.stdout
    assert "restarted by the same job" in finished.stdout


@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.exhaustive)]
)
def test_sigterm_to_the_launcher_reaches_every_rank(
    launcher: str, script: Path, tmp_path: Path
) -> None:
    _, options = LAUNCHERS[launcher]
    module = {
        "torchrun": ["torch.distributed.run"],
        "accelerate": ["accelerate.commands.accelerate_cli", "launch"],
    }[launcher]
    command = [sys.executable, "-m", *module, *map(str, options(script, "run"))]
    process = subprocess.Popen(
        command,
        env=launcher_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5"):
            break
    os.kill(process.pid, signal.SIGTERM)
    rest, _ = process.communicate(timeout=180)

    assert process.returncode not in (0, None), rest
    assert run_json(tmp_path)["status"] == "preempted", rest
    codes = re.findall(r"exitcode\s*: (-?\d+)", rest)
    assert set(codes) <= {"143"}, rest
