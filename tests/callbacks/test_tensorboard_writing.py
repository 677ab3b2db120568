"""When TensorBoard() writes, what it costs, and that nothing of it can end a training."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from danling.callback import Callback
from danling.callbacks import (
    CSVLogger,
    DeviceStatsMonitor,
    GradientNormMonitor,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    Results,
    RunDirectory,
    RunRecord,
    TensorBoard,
    ThroughputMonitor,
)
from danling.tensorboard.event_file import event_files, read_events, read_scalars
from danling.tensorboard.hparams import of_config
from danling.tensorboard.pages import close_killed, rebuild, shown_tag

READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__")


class Messages(Callback):
    """Keeps the warnings of the run's logger."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_setup(self, runner: Any) -> None:
        runner.logger.handlers.clear()
        runner.logger.propagate = False
        runner.logger.addFilter(self._keep)

    def on_teardown(self, runner: Any) -> None:
        runner.logger.removeFilter(self._keep)

    def _keep(self, record: Any) -> bool:
        self.texts.append(record.getMessage())
        return False


def tags_of(directory: Path) -> Counter[str]:
    events = [event for path in event_files(directory) for event in read_events(path)]
    return Counter(value.tag for event in events for value in event.summary.value)


def test_without_a_directory_it_writes_nothing_and_says_nothing(make_runner, tmp_path: Path):
    messages = Messages()

    make_runner([TensorBoard(histograms="1 step", graph=True), messages]).train()

    assert messages.texts == []
    assert list(tmp_path.iterdir()) == []


def test_the_values_of_a_log_are_one_event(make_runner):
    rows: list[dict[str, float]] = []
    look = LambdaCallback(on_log=lambda _, metrics: rows.append(dict(metrics)))
    runner = make_runner([RunDirectory(), TensorBoard(), look])

    runner.train()

    [path] = event_files(runner.dir)
    events = [
        {value.tag: value.simple_value for value in event.summary.value}
        for event in read_events(path)
        if any(value.HasField("simple_value") for value in event.summary.value)
    ]
    written = [event for event in events if not any(tag.startswith("~best/") for tag in event)]
    shown = [{shown_tag(tag): value for tag, value in row.items()} for row in rows]
    assert written == [pytest.approx(row, rel=1e-6) for row in shown]


def test_results_are_shown_against_the_epoch_where_asked(make_runner):
    runner = make_runner([RunDirectory(), TensorBoard(epoch_axis=True)])

    runner.train()

    points = read_scalars(runner.dir)
    assert [step for step, _ in points["~epoch/val/loss"]] == [1, 2]
    assert [step for step, _ in points["val/loss"]] == [6, 12]


def test_the_graph_is_written_once_and_leaves_the_training_as_it_was(make_runner):
    plain = make_runner([])
    plain.train()
    runner = make_runner([RunDirectory(), TensorBoard(graph=True)])

    runner.train()

    events = [event for path in event_files(runner.dir) for event in read_events(path)]
    assert sum(event.HasField("graph_def") for event in events) == 1
    assert runner.results == plain.results


def test_evaluation_outside_of_a_training_writes_nothing(make_runner):
    runner = make_runner([RunDirectory(), TensorBoard()])
    runner.train()
    before = [path.read_bytes() for path in event_files(runner.dir)]

    runner.evaluate("val")

    assert [path.read_bytes() for path in event_files(runner.dir)] == before


def test_a_second_training_goes_on_in_the_same_run(make_runner):
    runner = make_runner([RunDirectory(), TensorBoard()])
    runner.train()
    runner.config.max_epochs = 3

    runner.train()

    assert [step for step, _ in read_scalars(runner.dir)["train/loss"]] == list(range(2, 19, 2))
    tags = tags_of(runner.dir)
    assert (tags["_hparams_/session_start_info"], tags["_hparams_/session_end_info"]) == (1, 1)


def test_values_are_on_the_disk_at_evaluations_and_at_the_end_of_epochs(make_runner):
    seen: list[int] = []

    def look(runner: Any) -> None:
        seen.append(len(read_scalars(runner.dir).get("val/loss", [])))

    late = LambdaCallback(on_checkpoint=look, name="late")
    late.priority = 99
    make_runner([RunDirectory(), TensorBoard(), late], evaluate_every="3 steps").train()

    assert seen[2:7] == [1, 1, 1, 1, 2]  # the evaluation at an epoch's last step is that of it


def test_values_before_an_error_are_on_the_disk(make_runner):
    def fail(runner: Any) -> None:
        if runner.global_step == 9:
            raise ZeroDivisionError("on purpose")

    runner = make_runner([RunDirectory(), TensorBoard(), LambdaCallback(on_step=fail)])

    with pytest.raises(ZeroDivisionError):
        runner.train()

    assert [step for step, _ in read_scalars(runner.dir)["train/loss"]] == [2, 4, 6, 8]
    assert tags_of(runner.dir)["run/0_exception"] == 1


def test_a_killed_run_lost_no_more_than_the_flush_interval():
    program = """
import os, signal, time
from danling.callbacks import LambdaCallback, TensorBoard
from danling.testing import TinyRunner
now = [0.0]
time.monotonic = lambda: now[0]
def step(runner):
    now[0] += 1.0
    if runner.global_step == 150: os.kill(os.getpid(), signal.SIGKILL)
config = {"log_interval": 1, "max_epochs": 100, "project_root": "runs", "evaluate_every": None}
TinyRunner(config, default_callbacks=True,
           callbacks=[TensorBoard(flush_seconds=20), LambdaCallback(on_step=step)]).train()
"""

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)

    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    [directory] = Path("runs").glob("*/")
    points = read_scalars(directory)["train/loss"]
    assert 130 <= len(points) < 150
    assert [step for step, _ in points] == list(range(1, len(points) + 1))


def test_what_is_not_finite_is_written_and_told(make_runner):
    messages = Messages()
    log_nan = LambdaCallback(on_step=lambda runner: runner.log("aux", math.nan))
    runner = make_runner([RunDirectory(), messages, TensorBoard(), log_nan], max_epochs=1)

    runner.train()

    points = read_scalars(runner.dir)
    assert [math.isnan(value) for _, value in points["train/aux"]] == [True, True, True]
    assert points["train/nonfinite"] == [(2, 2.0), (4, 2.0), (6, 2.0)]
    assert "TensorBoard: points that are not finite: {'train/aux': 3}" in messages.texts


def everything_that_logs() -> list[Callback]:
    return [
        RunDirectory(),
        RunRecord(),
        Results(),
        ProgressBar(),
        CSVLogger(),
        DeviceStatsMonitor(),
        GradientNormMonitor(per_layer=True),
        LearningRateMonitor(),
        ThroughputMonitor(flops_per_sample=1e6),
        TensorBoard(epoch_axis=True),
    ]


def in_a_step(begin: Any, end: Any) -> tuple[Callback, Callback]:
    """Callbacks at both ends of everything that happens between a batch and the next."""
    first = LambdaCallback(name="first", on_batch_start=lambda runner, _: begin(runner))
    last = LambdaCallback(name="last", on_checkpoint=end)
    first.priority, last.priority = -99, 99
    return first, last


def test_no_value_is_read_from_the_device_on_a_step_that_is_not_logged(make_runner, monkeypatch):
    """Counted on the CPU: each of these would wait for a GPU."""
    steps_with_reads: set[int | None] = set()
    current: list[int | None] = [None]
    for name in READS:
        original = getattr(torch.Tensor, name)

        def noted(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            steps_with_reads.add(current[0])
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, noted)
    first, last = in_a_step(
        lambda runner: current.__setitem__(0, runner.global_step + 1),
        lambda _: current.__setitem__(0, None),
    )

    make_runner([first, *everything_that_logs(), last], log_interval=4).train()

    assert steps_with_reads - {None} == {4, 8, 12}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_that_is_not_logged_waits_for_the_gpu(make_runner):
    """Torch raises an error at whatever waits, from the batch to the safe point after its step."""
    checked: list[int] = []

    def begin(runner: Any) -> None:
        step = runner.global_step + 1
        if step % 4 and runner.batch_index != 5:  # the last of an epoch is evaluated
            torch.cuda.set_sync_debug_mode("error")
            checked.append(step)

    first, last = in_a_step(begin, lambda _: torch.cuda.set_sync_debug_mode("default"))
    try:
        make_runner([first, *everything_that_logs(), last], log_interval=4).train()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert checked == [1, 2, 3, 5, 7, 9, 10, 11]


# Failures


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_warning_and_a_count(make_runner):
    messages = Messages()

    def fill_the_disk(runner: Any) -> None:
        writer = runner.callbacks["tensorboard"]._writer
        if runner.epoch:
            return
        writer._file.close()
        writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115

    fill = LambdaCallback(on_epoch_start=fill_the_disk)
    runner = make_runner([RunDirectory(), messages, TensorBoard(), fill])

    runner.train()

    assert runner.global_step == 12
    full = (
        "TensorBoard failed, and the training goes on: OSError: [Errno 28] No space left on device"
    )
    assert messages.texts[0].startswith(full)
    assert re.fullmatch(r"TensorBoard failed \d+ times", messages.texts[1])
    assert len(messages.texts) == 2


def test_a_band_that_cannot_be_written_is_a_warning(make_runner):
    make_runner([RunDirectory(), TensorBoard()], seed=0).train()
    messages = Messages()
    runner = make_runner([RunDirectory(), messages, TensorBoard()], seed=1, experiment_name="other")

    def be_in_the_way(runner: Any) -> None:
        _, group = of_config(runner.config, runner.experiment_id)
        (runner.dir.parent / f"other-seeds-{group[:11]}").write_text("a file")

    runner.callbacks.append(LambdaCallback(on_train_end=be_in_the_way))
    runner.train()

    [text] = messages.texts
    assert text.startswith("the band over the seeds failed, and the training goes on: ")


def test_without_the_package_the_training_goes_on(make_runner, monkeypatch):
    messages = Messages()
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    runner = make_runner([RunDirectory(), messages, TensorBoard()])

    runner.train()

    assert runner.global_step == 12
    assert ["ModuleNotFoundError" in text for text in messages.texts] == [True]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("log_image", ("sample", torch.zeros(2, 2, 2, 2, 2))),
        ("log_figure", ("curve", object())),
        ("log_audio", ("tone", "noise")),
        ("log_histogram", ("weights", object())),
        ("log_pr_curve", ("digit", torch.zeros(2), torch.zeros(3))),
        ("log_embedding", ("points", torch.zeros(2, 3), ["one"])),
        ("log_graph", ("no input",)),
    ],
)
def test_what_cannot_be_shown_is_a_warning(method: str, arguments: tuple, make_runner):
    messages = Messages()

    def show(runner: Any) -> None:
        getattr(runner.callbacks["tensorboard"], method)(
            runner, *arguments, *([8000] if method == "log_audio" else [])
        )

    callbacks = [RunDirectory(), messages, TensorBoard(), LambdaCallback(on_epoch_end=show)]
    runner = make_runner(callbacks)

    runner.train()

    assert runner.epoch == 2
    assert len(messages.texts) == 2
    assert messages.texts[1] == "TensorBoard failed 2 times"


# The record


def test_the_file_is_rebuilt_from_the_record(make_runner):
    runner = make_runner([RunDirectory(), Results(), TensorBoard()])
    runner.train()
    runner.config.save(runner.dir / "runner.yaml")
    names = {"status": "finished", "experiment_id": runner.experiment_id}
    (runner.dir / "run.json").write_text(json.dumps({"schema": 1, **names}))
    points, tags = read_scalars(runner.dir), tags_of(runner.dir)
    starts = [start_info(path) for path in event_files(runner.dir)]

    path = rebuild(runner.dir, overwrite=True)

    assert event_files(runner.dir) == [path]
    assert read_scalars(runner.dir) == points
    lost = {"run/1_config", "run/2_changed_from_defaults", "run/3_command", "run/4_model"}
    lost |= {"custom_scalars__config__"}
    assert set(tags) - set(tags_of(runner.dir)) == lost
    assert [start_info(path)] == starts


def start_info(path: Path) -> tuple[str, dict[str, Any]]:
    """Row and values of a run in the HParams table."""
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    for event in read_events(path):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                content = value.metadata.plugin_data.content
                info = parse_session_start_info_plugin_data(content)
                return info.group_name, {name: str(v) for name, v in info.hparams.items()}
    raise AssertionError(path)


def test_a_killed_run_can_be_closed_once(make_runner):
    runner = make_runner([RunDirectory(), ModelCheckpoint(), TensorBoard()])
    with runner:
        for _ in runner.epochs():
            break
        killed = runner.dir

        assert close_killed(killed)
        assert not close_killed(killed)

    assert tags_of(killed)["_hparams_/session_end_info"] >= 1
