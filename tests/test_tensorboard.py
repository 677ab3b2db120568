"""Bands over seeds, layouts, and runs made again from their record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danling.errors import RunError
from danling.event_file import EventWriter, event_files, read_scalars
from danling.hparams import session_start
from danling.tensorboard import close_killed, rebuild, split_layout, write_band
from tests.tensorboard_server import Server

BACKENDS = pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])


def write_seeds(root: Path, values: list[dict[int, float]], tag: str = "val/loss") -> list[Path]:
    runs = []
    for seed, points in enumerate(values):
        run = root / f"seed-{seed}"
        run.mkdir(parents=True)
        with EventWriter(run) as writer:
            for step, value in points.items():
                writer.add_scalars({tag: value, "best/val/loss": value}, step)
        runs.append(run)
    return runs


def test_a_band_has_the_mean_the_least_and_the_greatest(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0, 20: 4.0}, {10: 2.0, 20: 5.0}, {10: 6.0, 20: 6.0}])

    tags = write_band(tmp_path / "seeds", runs)

    assert tags == ["val/loss"]
    assert read_scalars(tmp_path / "seeds") == {
        "val/loss/mean": [(10, 3.0), (20, 5.0)],
        "val/loss/min": [(10, 1.0), (20, 4.0)],
        "val/loss/max": [(10, 6.0), (20, 6.0)],
    }


def test_a_band_is_drawn_where_all_seeds_have_a_finite_value(tmp_path: Path):
    runs = write_seeds(
        tmp_path, [{10: 1.0, 20: float("nan"), 30: 1.0, 40: 2.0}, {10: 1.0, 20: 1.0, 30: 1.0}]
    )

    write_band(tmp_path / "seeds", runs)

    assert [step for step, _ in read_scalars(tmp_path / "seeds")["val/loss/mean"]] == [10, 30]


def test_a_band_replaces_the_one_before(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0}])

    write_band(tmp_path / "seeds", runs)
    write_band(tmp_path / "seeds", runs)

    assert len(event_files(tmp_path / "seeds")) == 1


@pytest.mark.parametrize("runs", [[], ["seed-0", "empty"]])
def test_runs_that_have_nothing_in_common_have_no_band(runs: list[str], tmp_path: Path):
    write_seeds(tmp_path, [{10: 1.0}])
    (tmp_path / "empty").mkdir()

    assert write_band(tmp_path / "seeds", [tmp_path / run for run in runs]) == []


def test_only_the_tags_that_are_asked_for_have_a_band(tmp_path: Path):
    runs = write_seeds(tmp_path, [{10: 1.0}, {10: 2.0}])

    assert write_band(tmp_path / "seeds", runs, ["best/val/loss"]) == ["best/val/loss"]


@BACKENDS
def test_the_server_has_a_chart_of_the_band_and_its_three_tags(fast: bool, tmp_path: Path):
    runs = write_seeds(tmp_path / "logs", [{10: 1.0, 20: 2.0}, {10: 3.0, 20: 4.0}])
    write_band(tmp_path / "logs" / "seeds", runs)

    with Server(tmp_path / "logs", fast=fast, runs=3) as server:
        server.wait_until(lambda: len(server.scalars("seeds", "val/loss/mean")) == 2)
        [chart] = server.charts()["mean, least and greatest over the seeds"].values()
        [series] = chart["margin"]["series"]
        shown = {part: server.scalars("seeds", tag) for part, tag in series.items()}

    assert shown == {
        "value": [(10, 2.0), (20, 3.0)],
        "lower": [(10, 1.0), (20, 2.0)],
        "upper": [(10, 3.0), (20, 4.0)],
    }


@BACKENDS
def test_a_later_layout_takes_the_place_of_an_earlier_one(fast: bool, tmp_path: Path):
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with EventWriter(run) as writer:
        for step, names in enumerate([["loss"], ["loss", "f1@10"], ["loss", "f1@10", "a.b"]]):
            writer.add([split_layout(names)], step)
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
