"""A tiny run with a tracker, in a process of its own; and what the tracker then has of it.

`python -m tests.support.tracker_runs train mlflow` fails after two epochs. `... kill mlflow` is
killed in the third, after it has logged beyond its checkpoint. `... train mlflow RUN` goes on, and
`... read mlflow` prints status, parameters, the points of `train/loss` and the number of pictures
as JSON.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from danling.callbacks import LambdaCallback, Tracker
from danling.testing import TinyRunner

OFFLINE = {"wandb": {"mode": "offline"}, "swanlab": {"mode": "local"}}
KILLED_AT = 11  # steps; the last checkpoint is that of step 8, the last row that of step 10
Points = list[tuple[int, float]]
Shown = tuple[str, dict[str, Any], Points, int]


def train(kind: str, resume: str = "", *, is_killed: bool = False) -> None:
    def fail(runner: Any) -> None:
        if runner.epoch == 2 and not resume and not is_killed:
            raise ZeroDivisionError("on purpose")

    def kill(runner: Any) -> None:
        if is_killed and runner.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def show(runner: Any) -> None:
        runner.log_image("samples/one", torch.rand(3, 8, 8))

    config = {"max_epochs": 4, "log_interval": 2, "optim": {"betas": [0.9, 0.99]}}
    runner = TinyRunner(
        {**config, "experiment_name": "tiny", "resume": resume or False},
        default_callbacks=True,
        callbacks=[
            Tracker(kind, options=OFFLINE.get(kind)),
            LambdaCallback(on_epoch_start=fail, on_epoch_end=show),
            LambdaCallback(name="kill", on_batch_end=lambda runner, batch, output: kill(runner)),
        ],
    )
    try:
        runner.train()
    except ZeroDivisionError:
        print("failed, as it should")


def read_mlflow() -> Shown:
    import mlflow

    client = mlflow.tracking.MlflowClient()
    [experiment] = [e for e in client.search_experiments() if e.name == "tiny"]
    [run] = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    points = [(point.step, point.value) for point in history]
    images = [image.path for image in client.list_artifacts(run.info.run_id, "images")]
    whole = [path for path in images if path.endswith(".png")]
    return run.info.status, run.data.params, points, len(whole)


def read_dvclive() -> Shown:
    import yaml

    [folder] = Path("experiments").glob("*/dvclive")
    with open(folder / "plots/metrics/train/loss.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    points = [(int(row["step"]), float(row["loss"])) for row in rows]
    params = yaml.safe_load((folder / "params.yaml").read_text())
    images = len(list((folder / "plots/images/samples/one").glob("*.png")))
    return json.loads((folder / "metrics.json").read_text())["status"], params, points, images


def read_trackio() -> Shown:
    from trackio.sqlite_storage import SQLiteStorage

    [run] = SQLiteStorage.get_runs("tiny")
    rows = SQLiteStorage.get_logs("tiny", run)
    points = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    status = [row["status"] for row in rows if "status" in row][-1]
    images = sum("samples/one" in row for row in rows)
    return status, SQLiteStorage.get_run_config("tiny", run), points, images


def read_aim() -> Shown:
    import aim

    [listing] = Path("experiments").glob("*/metadata/trackers.json")
    run_hash = json.loads(listing.read_text())["aim"]
    run = aim.Run(run_hash, repo="experiments", force_resume=True)
    [metric] = [metric for metric in run.metrics() if metric.name == "train/loss"]
    table = metric.dataframe()
    points = sorted(zip(table["step"].tolist(), table["value"].tolist(), strict=True))
    shown = run.get_image_sequence("samples/one", aim.sdk.run.Context({}))
    images = len(shown.values.sparse_list()[0])
    return run["status"], dict(run["hparams"]), points, images


def read_wandb() -> Shown:
    from wandb.proto.wandb_internal_pb2 import Record

    params: dict[str, Any] = {}
    points, codes, ids, images = [], [], set(), 0
    for path in sorted(Path("experiments").glob("*/wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            updates = [item for item in record.config.update if item.key]
            params |= {item.key: json.loads(item.value_json) for item in updates}
            codes += [record.exit.exit_code] if record.HasField("exit") else []
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            images += "samples/one" in items
            if "train/loss" in items:
                points.append((json.loads(items["global_step"]), json.loads(items["train/loss"])))
    assert len(ids) == 1, ids
    return "failed" if codes[-1] else "finished", params, points, images


def leveldb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of LevelDB's log format, which wandb's files are after 7 bytes; checksums unread."""
    place, parts = 7, []
    while place + 7 <= len(data) + 7:
        if block - place % block < 7:
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place - 7)
        parts.append(data[place : place + size])
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


READ = {
    "aim": read_aim,
    "dvclive": read_dvclive,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}

if __name__ == "__main__":
    what, kind, *rest = sys.argv[1:]
    if what == "train":
        train(kind, *rest)
    elif what == "kill":
        train(kind, is_killed=True)
    else:
        print(json.dumps(READ[kind]()))
