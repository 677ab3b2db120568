"""A tiny run with a tracker, in a process of its own; and what the tracker then has of it.

`python -m tests.support.tracker_runs train mlflow` fails after two epochs. `... kill mlflow` is
killed in the third, after it has logged beyond its checkpoint. `... train mlflow RUN` goes on, and
`... read mlflow` prints a `Shown` as JSON.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from danling.callbacks import LambdaCallback, Tracker
from danling.testing import TinyRunner

OFFLINE: dict[str, dict[str, Any]] = {
    "wandb": {"mode": "offline"},
    "swanlab": {"mode": "offline"},
    "comet_ml": {"online": False},
}
KILLED_AT = 11  # steps; the last checkpoint is that of step 8, the last row that of step 10
BEST = "best/val/loss"
Points = list[tuple[int, float]]


@dataclass
class Shown:
    """What a tracker has, of which `points` are those of `train/loss`."""

    runs: int
    status: str
    params: dict[str, Any]
    points: Points
    best: float
    images: int


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
    runs = client.search_runs([experiment.experiment_id])
    run = runs[0]
    history = client.get_metric_history(run.info.run_id, "train/loss")
    points = [(point.step, point.value) for point in history]
    images = [image.path for image in client.list_artifacts(run.info.run_id, "images")]
    whole = [path for path in images if path.endswith(".png")]
    best = run.data.metrics[BEST]
    return Shown(len(runs), run.info.status, run.data.params, points, best, len(whole))


def read_dvclive() -> Shown:
    import yaml

    folders = list(Path("experiments").glob("*/dvclive"))
    folder = folders[0]
    with open(folder / "plots/metrics/train/loss.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    points = [(int(row["step"]), float(row["loss"])) for row in rows]
    params = yaml.safe_load((folder / "params.yaml").read_text())
    images = len(list((folder / "plots/images/samples/one").glob("*.png")))
    summary = json.loads((folder / "metrics.json").read_text())
    best = summary["best"]["val"]["loss"]
    return Shown(len(folders), summary["status"], params, points, best, images)


def read_trackio() -> Shown:
    from trackio.sqlite_storage import SQLiteStorage

    runs = SQLiteStorage.get_runs("tiny")
    rows = SQLiteStorage.get_logs("tiny", runs[0])
    points = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    status = [row["status"] for row in rows if "status" in row][-1]
    images = sum("samples/one" in row for row in rows)
    params = SQLiteStorage.get_run_config("tiny", runs[0])
    best = [row[BEST] for row in rows if BEST in row][-1]
    return Shown(len(runs), status, params, points, best, images)


def read_aim() -> Shown:
    import aim

    [listing] = Path("experiments").glob("*/metadata/trackers.json")
    run_hash = json.loads(listing.read_text())["aim"]
    run = aim.Run(run_hash, repo="experiments", force_resume=True)
    series = {}
    for metric in run.metrics():
        steps, columns = metric.data.items_list()
        series[metric.name] = sorted(zip(steps, columns[0], strict=True))
    shown = run.get_image_sequence("samples/one", aim.sdk.run.Context({}))
    images = len(shown.values.sparse_list()[0])
    runs = len(aim.Repo("experiments").list_all_runs())
    best = series[BEST][-1][1]
    params = dict(run["hparams"])
    return Shown(runs, run["status"], params, series["train/loss"], best, images)


def read_wandb() -> Shown:
    from wandb.proto.wandb_internal_pb2 import Record

    shown = Shown(0, "", {}, [], 0.0, 0)
    ids = set()
    for data in records_in("*/wandb/offline-run-*/run-*.wandb"):
        record = Record.FromString(data)
        if record.HasField("run"):
            ids.add(record.run.run_id)
        updates = [item for item in record.config.update if item.key]
        shown.params |= {item.key: json.loads(item.value_json) for item in updates}
        if record.HasField("exit"):
            shown.status = "failed" if record.exit.exit_code else "finished"
        items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
        shown.images += "samples/one" in items
        shown.best = json.loads(items.get(BEST, json.dumps(shown.best)))
        if "train/loss" in items:
            step, value = json.loads(items["global_step"]), json.loads(items["train/loss"])
            shown.points.append((step, value))
    shown.runs = len(ids)
    return shown


def read_swanlab() -> Shown:
    import yaml

    Record: Any = import_module("swanlab.proto.swanlab.record.v1.record_pb2").Record

    shown = Shown(0, "", {}, [], 0.0, 0)
    ids = set()
    for data in records_in("*/swanlab/run-*/run-*.swanlab"):
        record = Record.FromString(data)
        if record.HasField("start"):
            ids.add(record.start.id)
        if record.HasField("finish"):
            shown.status = "finished" if record.finish.state == 1 else "failed"
        shown.images += record.HasField("media")
        if record.HasField("scalar") and record.scalar.key == "train/loss":
            shown.points.append((record.scalar.step, record.scalar.value.number))
        if record.HasField("scalar") and record.scalar.key == BEST:
            shown.best = record.scalar.value.number
    for path in sorted(Path("experiments").glob("*/swanlab/run-*/files/config.yaml")):
        entries = yaml.safe_load(path.read_text())
        shown.params |= {key: entry["value"] for key, entry in entries.items()}
    shown.runs = len(ids)
    return shown


def read_comet() -> Shown:
    shown = Shown(0, "", {}, [], 0.0, 0)
    ids = set()
    for path in sorted(Path("comet").glob("*.zip"), key=lambda path: path.stat().st_mtime):
        ids.add(path.name.partition("-")[0])
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            lines = archive.read("messages.json").splitlines() if "messages.json" in names else []
        for message in (json.loads(line) for line in lines):
            content = message["payload"]
            point, param = content.get("metric", {}), content.get("param", {})
            if point.get("metricName") == "train/loss":
                shown.points.append((point["step"], point["metricValue"]))
            if point.get("metricName") == BEST:
                shown.best = point["metricValue"]
            if param.get("source") == "manual":
                shown.params[param["paramName"]] = param["paramValue"]
            if content.get("key") == "status":
                shown.status = content["value"]
            shown.images += content.get("upload_type") == "visualization"
    shown.runs = len(ids)
    return shown


def read_clearml() -> Shown:
    folders = [path for path in Path("clearml").rglob("offline-*") if path.is_dir()]
    lines = (folders[0] / "metrics.jsonl").read_text().splitlines()
    events = [event for line in lines for event in json.loads(line)]
    scalars = [event for event in events if "scalar" in event["type"]]
    points = [(e["iter"], e["value"]) for e in scalars if e["metric"] == "train/loss"]
    best = [e["value"] for e in scalars if e["metric"] == BEST][-1]
    images = sum("image" in event["type"] for event in events)
    task = json.loads((folders[0] / "task.json").read_text())
    params = {}
    for line in task["configuration"]["General"]["value"].splitlines():
        key, _, value = line.partition(" = ")
        params[key.strip('"')] = value.strip().strip('"')
    status = task["hyperparams"]["Run"]["status"]["value"]
    return Shown(len(folders), status, params, points, best, images)


def records_in(pattern: str) -> Iterator[bytes]:
    """The records of the files of LevelDB's log format that a pattern finds among the runs."""
    for path in sorted(Path("experiments").glob(pattern)):
        yield from leveldb_records(path.read_bytes()[7:])


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
    "clearml": read_clearml,
    "comet_ml": read_comet,
    "dvclive": read_dvclive,
    "mlflow": read_mlflow,
    "swanlab": read_swanlab,
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
        print(json.dumps(asdict(READ[kind]())))
