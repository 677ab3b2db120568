"""The layout of the charts, and runs made again from their record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danling.errors import RunError
from danling.run.lock import DirectoryLock
from danling.tensorboard.event_file import EventWriter, event_files, read_scalars
from danling.tensorboard.hparams import session_start
from danling.tensorboard.pages import close_killed, layout, rebuild
from tests.support.tensorboard_server import Server

BACKENDS = pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])


@BACKENDS
def test_a_later_layout_takes_the_place_of_an_earlier_one(fast: bool, tmp_path: Path):
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        for step, names in enumerate([["loss"], ["loss", "f1@10"], ["loss", "f1@10", "a.b"]]):
            writer.add([layout(names)], step)
        writer.add_scalars({"val/a.b": 1, "val/axb": 1, "optim/lr/a.b": 1}, step=5)

    with Server(run.parent, fast=fast) as server:
        server.wait_until(lambda: server.scalar_tags("run"))
        charts = server.charts()["splits"]
        [pattern] = charts["a.b"]["multiline"]["tag"]
        shown = server.get("plugin/custom_scalars/scalars", run="run", tag=pattern)

    assert set(charts) == {"loss", "f1@10", "a.b"}
    assert set(shown["tag_to_events"]) == {"val/a.b"}


# A run from its record


def write_record(run: Path, **record: object) -> None:
    rows = [
        {"global_step": 50, "epoch": 0, "time": 100.0, "train/loss": 0.5},
        {"global_step": 60, "epoch": 0, "time": 101.0, "val/loss": "NaN"},
        {"global_step": 100, "epoch": 1, "time": 102.0, "train/loss": "-Infinity"},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "run.json").write_text(json.dumps({"schema": 1, **record}))


def test_what_is_rebuilt_has_the_steps_times_and_values_of_the_record(tmp_path: Path):
    write_record(tmp_path)

    rebuild(tmp_path)

    points = {tag: repr(series) for tag, series in read_scalars(tmp_path).items()}
    assert points == {"train/loss": "[(50, 0.5), (100, -inf)]", "val/loss": "[(60, nan)]"}


def test_event_files_are_replaced_only_where_asked(tmp_path: Path):
    write_record(tmp_path)
    first = rebuild(tmp_path)

    with pytest.raises(RunError, match="overwrite=True replaces them"):
        rebuild(tmp_path)
    second = rebuild(tmp_path, overwrite=True)

    assert event_files(tmp_path) == [second]
    assert first != second


def test_a_run_that_is_going_on_is_not_rebuilt(tmp_path: Path):
    write_record(tmp_path)

    with DirectoryLock(tmp_path), pytest.raises(RunError, match="is in use by process"):
        rebuild(tmp_path, overwrite=True)

    assert event_files(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "is_open"), [("running", True), ("preempted", True), ("failed", False)]
)
def test_a_rebuilt_run_has_its_status(status: str, is_open: bool, tmp_path: Path):
    write_record(tmp_path, status=status)

    rebuild(tmp_path)

    assert close_killed(tmp_path) == is_open


def test_a_directory_without_a_session_has_nothing_to_close(tmp_path: Path):
    with EventWriter(tmp_path) as writer:
        writer.add_scalars({"train/loss": 1}, step=1)

    assert not close_killed(tmp_path)


@BACKENDS
def test_a_killed_run_is_shown_as_a_failure_once_it_is_closed(fast: bool, tmp_path: Path):
    run = tmp_path / "logs" / "killed"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        writer.add([session_start({"lr": 0.1}, "a", 1.0)], step=0)
        writer.add_scalars({"train/loss": 1}, step=1)

    with Server(run.parent, fast=fast) as server:
        server.wait_until(lambda: server.session_groups())
        before = server.session_groups()[0]["sessions"][0]["status"]
        assert close_killed(run)
        server.wait_until(
            lambda: server.session_groups()[0]["sessions"][0]["status"] == "STATUS_FAILURE"
        )

    assert before == "STATUS_UNKNOWN"
