"""Runs of the digits as TensorBoard shows them, asked of real servers with either backend."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from danling.callbacks import TensorBoard
from danling.callbacks.lambda_callback import LambdaCallback
from danling.run.metrics_file import read_metrics
from danling.tensorboard.event_file import event_files, read_scalars
from danling.tensorboard.pages import shown_tag
from danling.testing import CallbackContract
from tests.support.digits_run import LAST_STEP, STEPS_PER_EPOCH, at_step, make_digits_runner
from tests.support.tensorboard_server import Server

CRASH = 60  # two and a half epochs
SEEDS = ["seed-0", "seed-1", "seed-2"]
RESUMED = ["crashed-and-resumed", "killed-and-resumed"]
ENDED_EARLY = ["crashed", "killed"]
RUNS = [*SEEDS, *RESUMED, *ENDED_EARLY]
TOKEN = "hf_" + "a1B2" * 8
Points = list[tuple[int, float]]


class TestTensorBoard(CallbackContract):
    default_callbacks = True

    def make(self) -> TensorBoard:
        return TensorBoard()


def crash() -> None:
    raise RuntimeError(f"no memory, password={TOKEN!r}")


def show_everything(runner: Any) -> None:
    runner.callbacks["tensorboard"].log_image(runner, "samples", torch.rand(16, 1, 8, 8))


def train_in_a_process(root: Path, killed_at: int) -> int:
    command = [sys.executable, "-m", "tests.support.digits_run", str(root), str(killed_at)]
    return subprocess.run(command, capture_output=True, timeout=120).returncode


@dataclass
class Pages:
    """The servers on one folder of runs, and the runs in it by their label."""

    logs: Path
    servers: dict[str, Server] = field(default_factory=dict)

    def run(self, label: str) -> Path:
        return (self.logs / label).resolve()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Iterator[Pages]:
    root = tmp_path_factory.mktemp("digits")
    logs = root / "logs"
    logs.mkdir()

    def label(name: str, directory: Path) -> None:
        (logs / name).symlink_to(directory, target_is_directory=True)

    for seed, name in enumerate(SEEDS):
        show = LambdaCallback(name="show", on_epoch_end=show_everything)
        runner = make_digits_runner(str(root / "runs"), seed, callbacks=[show])
        runner.train()
        label(name, runner.dir)
    [band] = (root / "runs").glob("digits-seeds-*")
    label("band", band)

    runner = make_digits_runner(str(root / "crash"), 5, callbacks=[at_step(CRASH, crash)])
    with pytest.raises(RuntimeError, match="no memory"):
        runner.train()
    label("crashed", Path(shutil.copytree(runner.dir, root / "crashed")))
    make_digits_runner(str(root / "crash"), 5, attempt=2, resume=str(runner.dir)).train()
    label("crashed-and-resumed", runner.dir)

    assert train_in_a_process(root / "kill", CRASH) == -signal.SIGKILL
    [killed] = (root / "kill").glob("digits-*")
    label("killed", Path(shutil.copytree(killed, root / "killed")))
    assert train_in_a_process(root / "kill", 0) == 0
    label("killed-and-resumed", killed)

    with (
        Server(logs, fast=True, runs=len(RUNS) + 1) as rust,
        Server(logs, fast=False, runs=len(RUNS) + 1) as python,
    ):
        for server in (rust, python):
            server.wait_until(lambda server=server: loaded(server))
        yield Pages(logs, {"rust": rust, "python": python})


def loaded(server: Server) -> bool:
    ended = [*SEEDS, *RESUMED]
    if server.scalars("band", "~seeds/val/loss/max")[-1][0] != LAST_STEP:
        return False
    return all(server.scalars(run, "val/loss")[-1][0] == LAST_STEP for run in ended)


@pytest.fixture(params=["rust", "python"])
def server(request, pages: Pages) -> Server:
    return pages.servers[request.param]


def record(directory: Path, tag: str) -> Points:
    """What metrics.jsonl has of a tag."""
    rows = read_metrics(directory / "metrics.jsonl")
    return [(row["global_step"], row[tag]) for row in rows if tag in row]


def accumulate(directory: Path) -> dict[str, Points]:
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(p.step, p.value) for p in reader.Scalars(tag)] for tag in tags}


# Scalars


def test_every_logged_value_is_shown_at_its_global_step(pages: Pages, server: Server):
    shown = server.scalars("seed-0", "train/loss")

    assert [step for step, _ in shown] == list(range(2, LAST_STEP + 1, 2))
    logged = dict(record(pages.run("seed-0"), "train/loss"))
    assert dict(shown) == pytest.approx(logged, rel=1e-6)
    steps = [step for step, _ in server.scalars("seed-0", "val/accuracy")]
    assert steps == [STEPS_PER_EPOCH * epoch for epoch in range(1, 5)]


def test_the_tags_are_those_of_the_record_and_the_best_values(pages: Pages, server: Server):
    rows = read_metrics(pages.run("seed-0") / "metrics.jsonl")
    logged = {tag for row in rows for tag in row if "/" in tag}

    shown = server.scalar_tags("seed-0")

    assert {"optim/lr/0", "optim/grad_norm", "perf/steps_per_second"} < logged
    assert shown == {shown_tag(tag) for tag in logged} | {"~best/val/loss", "~best/val/accuracy"}


def test_the_best_value_of_the_table_is_the_best_of_the_run(pages: Pages, server: Server):
    best = max(value for _, value in record(pages.run("seed-0"), "val/accuracy"))

    assert server.scalars("seed-0", "~best/val/accuracy")[-1][1] == pytest.approx(best)


@pytest.mark.parametrize("run", RUNS)
def test_the_steps_of_every_tag_only_grow(run: str, pages: Pages):
    for name, points in {"file": read_scalars, "accumulator": accumulate}.items():
        by_tag = points(pages.run(run))
        assert by_tag, name
        for tag, series in by_tag.items():
            steps = [step for step, _ in series]
            assert steps == sorted(set(steps)), (name, tag)


@pytest.mark.parametrize("run", RESUMED)
def test_a_resumed_run_shows_nothing_of_its_abandoned_part(run: str, pages: Pages, server: Server):
    checkpoint = CRASH // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    expected = [(step, 1.0 if step <= checkpoint else 2.0) for step in range(2, LAST_STEP + 1, 2)]

    assert server.scalars(run, "train/attempt") == expected
    assert accumulate(pages.run(run))["train/attempt"] == expected
    assert record(pages.run(run), "train/attempt") == expected
    assert "train/abandoned" not in server.scalar_tags(run)
    steps = [step for step, _ in server.scalars(run, "val/loss")]
    assert steps == [STEPS_PER_EPOCH * epoch for epoch in range(1, 5)]


@pytest.mark.parametrize("run", RESUMED)
def test_a_resumed_run_shows_what_one_without_a_stop_would(run: str, pages: Pages, tmp_path: Path):
    seed = 5 if run.startswith("crashed") else 7
    runner = make_digits_runner(str(tmp_path), seed)
    runner.train()

    whole, resumed = accumulate(runner.dir), accumulate(pages.run(run))

    assert whole.keys() == resumed.keys()
    for tag in ("train/loss", "train/accuracy", "val/loss", "~optim/grad_norm", "~best/val/loss"):
        assert resumed[tag] == whole[tag], tag


def test_a_killed_run_shows_what_was_logged_up_to_its_checkpoint(pages: Pages, server: Server):
    steps = [step for step, _ in server.scalars("killed", "train/loss")]

    assert steps[:STEPS_PER_EPOCH] == list(range(2, 2 * STEPS_PER_EPOCH + 1, 2))


# HParams


def groups_by_run(server: Server) -> dict[str, dict[str, Any]]:
    return {
        session["name"]: {**group, "status": session["status"]}
        for group in server.session_groups()
        for session in group["sessions"]
    }


def test_the_table_has_the_configuration_with_its_types(server: Server):
    types = {name: column["type"] for name, column in server.hparams().items()}

    assert types == {
        "optim.amsgrad": "DATA_TYPE_BOOL",
        "optim.lr": "DATA_TYPE_FLOAT64",
        "~dataloader.batch_size": "DATA_TYPE_FLOAT64",
        "~max_epochs": "DATA_TYPE_FLOAT64",
        "~monitor": "DATA_TYPE_STRING",
        "~monitor_mode": "DATA_TYPE_STRING",
    }


def test_the_runs_of_one_configuration_are_one_row(server: Server):
    rows = [{session["name"] for session in group["sessions"]} for group in server.session_groups()]

    assert {*SEEDS, "crashed-and-resumed"} in rows  # the killed one was of another script


def test_a_run_that_has_not_finished_is_in_no_mean_and_has_the_id_of_the_run(
    pages: Pages, server: Server
):
    rows = {
        group["name"]: {s["name"] for s in group["sessions"]} for group in server.session_groups()
    }

    for name in ("crashed", "killed"):
        run = pages.run(f"{name}-and-resumed").name
        assert rows[run.removeprefix("digits-run-")] == {name}


def test_every_run_has_its_own_status(server: Server):
    statuses = {run: group["status"] for run, group in groups_by_run(server).items()}

    ended = dict.fromkeys([*SEEDS, *RESUMED], "STATUS_SUCCESS")
    assert statuses == ended | {"crashed": "STATUS_FAILURE", "killed": "STATUS_UNKNOWN"}


def test_a_row_has_the_mean_of_last_and_best_values(pages: Pages, server: Server):
    [group] = [g for g in server.session_groups() if "seed-0" in {s["name"] for s in g["sessions"]}]
    runs = [session["name"] for session in group["sessions"]]

    shown = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}

    for tag in ("val/accuracy", "~best/val/accuracy"):
        last = [server.scalars(run, tag)[-1][1] for run in runs]
        assert shown[tag] == pytest.approx(sum(last) / len(last))


def test_all_of_a_run_is_in_its_own_directory(pages: Pages):
    run = pages.run("seed-0")

    assert [path for path in run.rglob("events.*") if path.parent != run] == []
    assert {path.name for path in run.parent.iterdir() if path.is_dir()} == {
        pages.run(name).name for name in [*SEEDS, "band"]
    }


# Layout, text and media


def test_each_metric_has_a_chart_of_all_its_splits(server: Server):
    charts = server.charts()["splits"]

    assert set(charts) == {"loss", "accuracy"}
    [pattern] = charts["loss"]["multiline"]["tag"]
    matching = server.get("plugin/custom_scalars/scalars", run="seed-0", tag=pattern)
    assert set(matching["tag_to_events"]) == {"train/loss", "val/loss"}


def test_the_mean_of_the_seeds_is_drawn_in_the_band_of_what_there_was(server: Server):
    [charts] = [charts for title, charts in server.charts().items() if "over the seeds" in title]
    [series] = charts["val/loss"]["margin"]["series"]
    shown = {part: server.scalars("band", tag) for part, tag in series.items()}

    of_seeds = [dict(server.scalars(run, "val/loss")) for run in SEEDS]
    steps = [step for step, _ in shown["value"]]
    values = [[points[step] for points in of_seeds] for step in steps]
    assert steps == [STEPS_PER_EPOCH * epoch for epoch in range(1, 5)]
    assert dict(shown["lower"]) == {step: min(v) for step, v in zip(steps, values, strict=True)}
    assert dict(shown["upper"]) == {step: max(v) for step, v in zip(steps, values, strict=True)}
    assert [mean for _, mean in shown["value"]] == pytest.approx([sum(v) / 3 for v in values])
    assert set(charts) == {
        f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy")
    } | {"train/attempt"}


def test_the_texts_tell_how_a_run_was_started(server: Server):
    tags = set(server.get("plugin/text/tags")["seed-0"])

    assert sorted(tags) == [
        "run/1_config",
        "run/2_changed_from_defaults",
        "run/3_command",
        "run/4_model",
        "run/5_environment",
        "run/6_code",
    ]
    assert "lr: 0.01" in server.text("seed-0", "run/1_config")
    assert "Sequential" in server.text("seed-0", "run/4_model")
    assert "versions.torch" in server.text("seed-0", "run/5_environment")


def test_a_crash_shows_its_traceback_without_secrets(pages: Pages, server: Server):
    shown = server.text("crashed", "run/0_exception")

    assert "RuntimeError: no memory" in shown
    assert "digits_run.py" in shown
    data = b"".join(path.read_bytes() for path in event_files(pages.run("crashed")))
    assert TOKEN.encode() not in data


def test_histograms_of_weights_and_gradients_come_on_their_trigger(server: Server):
    tags = server.get("plugin/histograms/tags")["seed-0"]
    shown = server.get("plugin/histograms/histograms", run="seed-0", tag="~weights/0.weight")

    names = [f"{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")]
    assert set(tags) == {f"~{what}/{name}" for what in ("weights", "gradients") for name in names}
    assert [point[1] for point in shown] == [1, 25, 49, 73]
    assert sum(count for _, _, count in shown[0][2]) == 64 * 16


def test_images_are_shown(server: Server):
    shown = server.get("plugin/images/images", run="seed-0", tag="samples", sample="0")

    assert [image["step"] for image in shown] == [24, 48, 72, 96]
    png = server.download(f"plugin/images/individualImage?{shown[0]['query']}")
    assert png.startswith(b"\x89PNG")
