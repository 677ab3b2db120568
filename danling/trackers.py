"""The trackers of Accelerate, as far as they differ: how one goes on with a run, and ends it.

`accelerate.tracking` starts trackers and hands values to them. It knows neither a run that is
resumed nor one that failed, and for half of the trackers no images.
"""

from __future__ import annotations

import csv
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from danling.errors import CallbackError, did_you_mean

__all__ = ["GOES_ON", "KINDS", "Identity", "Kind", "check_kind", "show_image", "start_tracker"]


@dataclass(frozen=True)
class Identity:
    """The run that a tracker is to show.

    Attributes:
        project: The name of the group of runs.
        name: The name of the run, unique in the project.
        uuid: Hex form of the run's random identity.
        directory: The directory of the run.
        root: The folder of all runs.
        known_id: The id that `Kind.id_of` gave when the run was started; None for a new one.
    """

    project: str
    name: str
    uuid: str
    directory: Path
    root: Path
    known_id: str | None = None


def _nothing(tracker: Any) -> None:
    return None


def _untold(tracker: Any, run: Identity) -> None:
    return None


def _as_it_is(tracker: Any, run: Identity) -> None:
    return None


def show_image(tracker: Any, tag: str, image: Any, step: int) -> None:
    """Show an image by the method that Accelerate's trackers have for lists of them."""
    tracker.log_images({tag: [image]}, step=step)


def _show_one(tracker: Any, tag: str, image: Any, step: int) -> None:
    tracker.log_images({tag: image}, step=step)


@dataclass(frozen=True)
class Kind:
    """The way in which one tracker is used.

    Attributes:
        options: Arguments of Accelerate's tracker, for a run or for its continuation.
        begin: A function that completes the start of the tracker.
        show: Shows an image of PIL under a tag at a step.
        end: Ends the run with its status, "finished" or "failed" for example.
        id_of: A function that gives the tracker's id of the run, where it draws the name itself.
        last_steps: The step of the last point of each tag that the tracker has of a run that goes
            on; None where it cannot tell.
        package: The name of the package for pip.
    """

    options: Callable[[Identity], dict[str, Any]]
    end: Callable[[Any, str], None]
    begin: Callable[[Any, Identity], None] = _as_it_is
    show: Callable[[Any, str, Any, int], None] = show_image
    id_of: Callable[[Any], str | None] = _nothing
    last_steps: Callable[[Any, Identity], dict[str, int] | None] = _untold
    package: str | None = None


def start_tracker(kind: str, identity: Identity, options: Mapping[str, Any]) -> Any:
    """Start a tracker of Accelerate on a run.

    Args:
        kind: The kind of tracker, one of the values of `KINDS`.
        identity: The run.
        options: Arguments of Accelerate's tracker, which win.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker_class: Any = LOGGER_TYPE_TO_CLASS[kind]
    arguments = {**KINDS[kind].options(identity), **options}
    if tracker_class.requires_logging_directory:
        arguments = {"logging_dir": str(identity.root)} | arguments
    tracker = tracker_class(identity.project, **arguments)
    tracker.start()
    KINDS[kind].begin(tracker, identity)
    return tracker


def check_kind(kind: str) -> None:
    """Whether a tracker can be used.

    Raises:
        CallbackError: There is no such tracker, or its package is not installed.

    Example:
        >>> check_kind("mlflwo")
        Traceback (most recent call last):
        danling.errors.CallbackError: Tracker('mlflwo'): did you mean 'mlflow'?
    """
    from accelerate.tracking import get_available_trackers

    if kind == "tensorboard":
        raise CallbackError("Tracker('tensorboard'): use the callback TensorBoard() instead")
    if kind not in KINDS:
        raise CallbackError(f"Tracker({kind!r}): {did_you_mean(kind, KINDS)}")
    if kind not in {str(name) for name in get_available_trackers()}:
        package = KINDS[kind].package or kind
        raise CallbackError(f"Tracker({kind!r}) is not installed: pip install {package}")


def _succeeded(status: str) -> bool:
    return status in ("finished", "stopped")


def _finish(tracker: Any, status: str) -> None:
    tracker.finish()


# Weights & Biases


def _leveldb_files(folder: Path, pattern: str) -> Iterator[bytes]:
    """The records of the files that a pattern finds, in the order of their names."""
    for path in sorted(folder.glob(pattern)):
        yield from _leveldb_records(path.read_bytes()[7:])


def _last_steps_wandb(tracker: Any, run: Identity) -> dict[str, int] | None:
    """Read the files of the offline runs; a server is not asked."""
    if not getattr(tracker.run.settings, "_offline", False):
        return None
    record_class = import_module("wandb.proto.wandb_internal_pb2").Record
    steps: dict[str, int] = {}
    for data in _leveldb_files(run.directory, "wandb/offline-run-*/run-*.wandb"):
        items = record_class.FromString(data).history.item
        row = {item.key or item.nested_key[0]: item.value_json for item in items}
        if "global_step" in row:
            steps |= dict.fromkeys(row, int(float(row["global_step"])))
    return steps


def _leveldb_records(data: bytes, block: int = 1 << 15) -> Iterator[bytes]:
    """The whole records of LevelDB's log format, in which wandb and SwanLab write after 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md; checksums are not compared.
    """
    place, parts = 0, []
    while True:
        room = block - (place + 7) % block  # the 7 bytes before count in the first block
        place += room if room < 7 else 0
        if place + 7 > len(data):
            return
        _, size, kind = struct.unpack_from("<IHB", data, place)
        place += 7
        if place + size > len(data):
            return  # the process was killed in the middle of it
        parts.append(data[place : place + size])
        place += size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def _wandb(run: Identity) -> dict[str, Any]:
    return {"id": run.uuid, "name": run.name, "resume": "allow", "dir": str(run.directory)}


def _begin_wandb(tracker: Any, run: Identity) -> None:
    # its own steps must not go back, those of a resumed run do
    tracker.run.define_metric("*", step_metric="global_step")


def _show_wandb(tracker: Any, tag: str, image: Any, step: int) -> None:
    tracker.log({"global_step": step, tag: [import_module("wandb").Image(image)]})


def _end_wandb(tracker: Any, status: str) -> None:
    tracker.run.summary["status"] = status
    tracker.run.finish(exit_code=0 if _succeeded(status) else 1)


# MLflow


def _mlflow(run: Identity) -> dict[str, Any]:
    return {"run_name": run.name, "run_id": run.known_id}


def _last_steps_mlflow(tracker: Any, run: Identity) -> dict[str, int]:
    client, run_id = import_module("mlflow").MlflowClient(), tracker.active_run.info.run_id
    tags = client.get_run(run_id).data.metrics
    return {tag: max(p.step for p in client.get_metric_history(run_id, tag)) for tag in tags}


def _show_mlflow(tracker: Any, tag: str, image: Any, step: int) -> None:
    import_module("mlflow").log_image(image, key=tag, step=step)


def _end_mlflow(tracker: Any, status: str) -> None:
    others = {"preempted": "KILLED", "interrupted": "KILLED"}
    import_module("mlflow").end_run(
        "FINISHED" if _succeeded(status) else others.get(status, "FAILED")
    )


# Aim


def _aim(run: Identity) -> dict[str, Any]:
    going_on = run.known_id is not None
    return {"run_hash": run.known_id, "experiment": run.project, "force_resume": going_on}


def _last_steps_aim(tracker: Any, run: Identity) -> dict[str, int]:
    """No step: a point that is sent again takes its own place, since Aim keeps them by step."""
    return {}


def _end_aim(tracker: Any, status: str) -> None:
    tracker.writer["status"] = status
    tracker.finish()


# Comet


def _comet(run: Identity) -> dict[str, Any]:
    return {"experiment_key": run.uuid, "mode": "get_or_create"}


def _last_steps_comet(tracker: Any, run: Identity) -> dict[str, int] | None:
    """Read the archives of the offline experiments; a server is not asked.

    The archive of a killed process is empty: its points are sent once more, and are there once.
    """
    folder = getattr(tracker.writer, "offline_directory", None)
    if folder is None:
        return None
    steps: dict[str, int] = {}
    for path in Path(folder).glob(f"{run.uuid}*.zip"):
        with zipfile.ZipFile(path) as archive:
            is_whole = "messages.json" in archive.namelist()
            lines = archive.read("messages.json").splitlines() if is_whole else []
        for message in map(json.loads, lines):
            point = message["payload"].get("metric") or {}
            if point.get("step") is not None:
                tag = point["metricName"]
                steps[tag] = max(point["step"], steps.get(tag, -1))
    return steps


def _begin_comet(tracker: Any, run: Identity) -> None:
    tracker.writer.set_name(run.name)


def _show_comet(tracker: Any, tag: str, image: Any, step: int) -> None:
    tracker.writer.log_image(image, name=tag, step=step)


def _end_comet(tracker: Any, status: str) -> None:
    tracker.writer.log_other("status", status)
    tracker.finish()


# ClearML


def _clearml(run: Identity) -> dict[str, Any]:
    if run.known_id is None:
        return {"task_name": run.name, "continue_last_task": False}
    # 0: else it would add the last step of a task that goes on to all further ones
    return {"task_name": run.name, "reuse_last_task_id": run.known_id, "continue_last_task": 0}


def _last_steps_clearml(tracker: Any, run: Identity) -> dict[str, int] | None:
    """Read the folder of the offline session; a server is not asked."""
    if not tracker.task.is_offline():
        return None
    path = Path(tracker.task.get_offline_mode_folder()) / "metrics.jsonl"
    steps: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        for point in json.loads(line):
            steps[point["metric"]] = max(point["iter"], steps.get(point["metric"], -1))
    return steps


def _end_clearml(tracker: Any, status: str) -> None:
    tracker.task.set_parameter("Run/status", status)  # an offline session keeps no other
    if tracker.task.is_offline():
        tracker.finish()
        return
    if status in ("preempted", "interrupted"):
        tracker.task.mark_stopped(status_message=status, force=True)
    elif not _succeeded(status):
        tracker.task.mark_failed(status_message=status, force=True)
    tracker.finish()


# DVCLive


def _dvclive(run: Identity) -> dict[str, Any]:
    folder = run.directory / "dvclive"
    options = {"dir": str(folder), "resume": folder.exists(), "exp_name": run.name}
    return {**options, "save_dvc_exp": False, "dvcyaml": False}


def _last_steps_dvclive(tracker: Any, run: Identity) -> dict[str, int]:
    folder = run.directory / "dvclive" / "plots" / "metrics"
    steps = {}
    for path in folder.rglob("*.tsv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = [int(row["step"]) for row in csv.DictReader(file, delimiter="\t")]
        steps[path.relative_to(folder).with_suffix("").as_posix()] = max(rows, default=-1)
    return steps


def _show_dvclive(tracker: Any, tag: str, image: Any, step: int) -> None:
    tracker.live.log_image(f"{tag}/{step}.png", image)


def _end_dvclive(tracker: Any, status: str) -> None:
    tracker.live.summary["status"] = status
    tracker.finish()


# SwanLab


def _swanlab(run: Identity) -> dict[str, Any]:
    return {
        "id": run.uuid,
        "name": run.name,
        "resume": "allow",
        "log_dir": str(run.directory / "swanlab"),
    }


def _last_steps_swanlab(tracker: Any, run: Identity) -> dict[str, int] | None:
    """Read the files of the offline runs; a server is not asked."""
    if tracker.run.mode not in ("offline", "local"):
        return None
    record_class = import_module("swanlab.proto.swanlab.record.v1.record_pb2").Record
    steps: dict[str, int] = {}
    for data in _leveldb_files(run.directory, "swanlab/run-*/run-*.swanlab"):
        record = record_class.FromString(data)
        if record.HasField("scalar"):
            steps[record.scalar.key] = record.scalar.step
    return steps


def _end_swanlab(tracker: Any, status: str) -> None:
    state = {"preempted": "aborted", "interrupted": "aborted"}.get(status, "crashed")
    if _succeeded(status):
        tracker.run.finish()
    else:
        tracker.run.finish(state=state, error=status)


# Trackio


def _trackio(run: Identity) -> dict[str, Any]:
    return {"name": run.name, "resume": "allow", "embed": False}


def _last_steps_trackio(tracker: Any, run: Identity) -> dict[str, int] | None:
    """Read the database on this machine; a space is not asked."""
    if getattr(tracker.run, "_space_id", None):
        return None
    storage = import_module("trackio.sqlite_storage").SQLiteStorage
    steps: dict[str, int] = {}
    for row in storage.get_logs(run.project, run.name):
        for tag in row:
            steps[tag] = max(row["step"], steps.get(tag, -1))
    return steps


def _show_trackio(tracker: Any, tag: str, image: Any, step: int) -> None:
    tracker.log({tag: import_module("trackio").Image(image)}, step=step)


def _end_trackio(tracker: Any, status: str) -> None:
    tracker.run.log({"status": status})
    tracker.finish()


KINDS: Mapping[str, Kind] = {
    "aim": Kind(
        _aim,
        _end_aim,
        show=_show_one,
        id_of=lambda tracker: str(tracker.writer.hash),
        last_steps=_last_steps_aim,
    ),
    "clearml": Kind(
        _clearml,
        _end_clearml,
        show=_show_one,
        id_of=lambda tracker: str(tracker.task.id),
        last_steps=_last_steps_clearml,
    ),
    "comet_ml": Kind(
        _comet, _end_comet, begin=_begin_comet, show=_show_comet, last_steps=_last_steps_comet
    ),
    "dvclive": Kind(_dvclive, _end_dvclive, show=_show_dvclive, last_steps=_last_steps_dvclive),
    "mlflow": Kind(
        _mlflow,
        _end_mlflow,
        show=_show_mlflow,
        id_of=lambda tracker: str(tracker.active_run.info.run_id),
        last_steps=_last_steps_mlflow,
    ),
    "swanlab": Kind(_swanlab, _end_swanlab, last_steps=_last_steps_swanlab),
    "trackio": Kind(_trackio, _end_trackio, show=_show_trackio, last_steps=_last_steps_trackio),
    "wandb": Kind(
        _wandb, _end_wandb, begin=_begin_wandb, show=_show_wandb, last_steps=_last_steps_wandb
    ),
}
"""The trackers by the name that Accelerate has for them."""

GOES_ON: Mapping[str, str] = {
    "aim": "3.29.1",
    "clearml": "2.1.12",
    "comet_ml": "3.58.8",
    "dvclive": "3.49.1",
    "mlflow": "3.17.2",
    "swanlab": "0.10.3",
    "trackio": "0.43.0",
    "wandb": "0.31.0",
}
"""Trackers, with their versions, in which a killed and resumed run was seen to be one run with each
point once: offline, and with SIGKILL. A test does it again where they are installed."""
