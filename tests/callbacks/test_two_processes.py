"""The default callbacks, and those that stop or measure, in a run of two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from danling.run.metrics_file import read_metrics
from danling.tensorboard.event_file import event_files, read_scalars

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, signal, torch, danling as dl
from danling.callbacks import (
    CSVLogger, DeviceStatsMonitor, EarlyStopping, GradientNormMonitor, LambdaCallback,
    LearningRateMonitor, TensorBoard, ThroughputMonitor,
)
data = torch.utils.data.TensorDataset(torch.randn(48, 4), torch.randn(48, 1))
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
def kill(runner):
    if runner.rank == 1 and runner.global_step == 7:
        os.kill(os.getpid(), signal.SIGTERM)
runner = dl.AccelerateRunner(
    dict(seed=0, max_epochs=9, log_interval=2, dataloader=dict(batch_size=4), poll_interval=2),
    model=model, criterion=torch.nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), 0.01),
    datasets=dict(train=data, val=data),
    callbacks=[
        CSVLogger(), DeviceStatsMonitor(), EarlyStopping(restore_best_weights=True),
        GradientNormMonitor(per_layer=True), LearningRateMonitor(), ThroughputMonitor(),
        TensorBoard(histograms="1 epoch"),
        LambdaCallback(on_step=kill, on_train_end=lambda r: r.logger.info("a line of mine")),
        LambdaCallback(name="log_rank", on_step=lambda r: r.log("rank", float(r.rank))),
    ],
)
runner.train()
"""


class Launch(NamedTuple):
    """What two processes left behind, of which the second got a SIGTERM in step 7."""

    codes: list[int]
    errors: list[str]
    folder: Path

    @property
    def run(self) -> Path:
        (directory,) = (self.folder / "experiments").glob("danling-run-*")
        return directory


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=folder,
            env=os.environ
            | common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return Launch([process.returncode for process in processes], errors, folder)


def test_a_signal_to_one_process_ends_both(launch: Launch):
    assert launch.codes == [143, 143], launch.errors


def test_there_is_one_directory_with_one_record(launch: Launch):
    record = json.loads((launch.run / "run.json").read_text())

    assert record["status"] == "preempted"
    assert record["reason"] == "signal SIGTERM (rank 1)"
    assert record["launches"][0]["world_size"] == 2
    assert (launch.run / "checkpoints" / "latest.pth").is_file()


def test_every_row_is_there_once(launch: Launch):
    logged = [
        (row["global_step"], tag)
        for row in read_metrics(launch.run / "metrics.jsonl")
        for tag in row
        if "/" in tag
    ]

    assert len(logged) == len(set(logged))
    assert {(2, "train/loss"), (6, "val/loss"), (6, "perf/samples_per_second")} <= set(logged)


def test_the_main_process_prints_each_line_once(launch: Launch):
    assert launch.errors[0].count("a line of mine") == 1
    assert launch.errors[0].count("  1/9    6 | ") == 1
    assert launch.errors[0].count("  2/9    8 | ") == 1


def test_the_other_process_is_silent_and_writes_nothing(launch: Launch):
    assert "danling" not in launch.errors[1]
    assert "epoch" not in launch.errors[1]
    assert (launch.run / "run.log").read_text().count("a line of mine") == 1


def test_tensorboard_has_one_file_with_the_means_over_both(launch: Launch):
    shown = read_scalars(launch.run)

    assert len(event_files(launch.run)) == 1
    assert shown["train/rank"] == [(step, 0.5) for step in (2, 4, 6, 8)]
    rows = [row for row in read_metrics(launch.run / "metrics.jsonl") if "train/loss" in row]
    logged = {row["global_step"]: row["train/loss"] for row in rows}
    assert dict(shown["train/loss"]) == pytest.approx(logged)
