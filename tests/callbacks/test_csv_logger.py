from __future__ import annotations

import csv
import resource
from pathlib import Path

import pytest

from danling.callbacks.csv_logger import CSVLogger
from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.model_checkpoint import ModelCheckpoint
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.run_record import RunRecord
from danling.testing import CallbackContract


def table(runner) -> list[dict[str, str]]:
    with open(runner.dir / "metrics.csv", newline="") as file:
        return [{**row} for row in csv.DictReader(file)]


def test_a_row_per_log_and_a_column_per_tag(make_runner):
    logged: list[dict[str, float]] = []
    keep = LambdaCallback(on_log=lambda runner, metrics: logged.append(dict(metrics)))
    runner = make_runner([RunDirectory(), CSVLogger(), keep])

    runner.train()

    rows = table(runner)
    assert [row["global_step"] for row in rows] == ["2", "4", "6", "6", "8", "10", "12", "12"]
    assert list(rows[0])[:3] == ["global_step", "epoch", "time"]
    values = [
        {tag: float(value) for tag, value in row.items() if "/" in tag and value} for row in rows
    ]
    assert values == logged


def test_a_tag_that_appears_later_is_a_column_at_the_end(make_runner):
    late = LambdaCallback(on_step=lambda r: r.log("late", 1.0) if r.global_step > 6 else None)
    runner = make_runner([RunDirectory(), CSVLogger(), late])

    runner.train()

    rows = table(runner)
    assert list(rows[0])[-1] == "train/late"
    assert [row["train/late"] or "" for row in rows] == ["", "", "", "", "1.0", "1.0", "1.0", ""]


def test_a_new_tag_at_each_step_leaves_all_rows_of_one_length(make_runner):
    def log_and_flush(runner):
        runner.log(f"aux-{runner.global_step}", float(runner.global_step))
        runner.callbacks["csv_logger"].on_epoch_end(runner)

    new = LambdaCallback(on_step=log_and_flush)
    runner = make_runner([RunDirectory(), CSVLogger(), new], log_interval=1)

    runner.train()

    with open(runner.dir / "metrics.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(header)}
    for step in range(1, 13):
        column = header.index(f"train/aux-{step}")
        assert [row[column] for row in rows if row[column]] == [str(float(step))]
    assert len(rows) == 14


def test_nan_is_nan(make_runner):
    nan = LambdaCallback(on_step=lambda runner: runner.log("aux", float("nan")))
    runner = make_runner([RunDirectory(), CSVLogger(), nan], max_epochs=1)

    runner.train()

    assert table(runner)[0]["train/aux"] == "nan"


def test_the_table_of_a_resumed_run_is_cut_back(make_runner):
    def fail(runner):
        if runner.global_step > 6:
            runner.log("abandoned", 1.0)
        if runner.global_step == 9:
            raise ValueError("boom")

    callbacks = [RunDirectory(), RunRecord(), ModelCheckpoint()]
    first = make_runner([*callbacks, CSVLogger(), LambdaCallback(on_step=fail)], log_interval=1)
    with pytest.raises(ValueError, match="boom"):
        first.train()
    before = [row["global_step"] for row in table(first)]
    assert "train/abandoned" in table(first)[0]

    callbacks = [RunDirectory(), RunRecord(), ModelCheckpoint()]
    again = make_runner([*callbacks, CSVLogger()], log_interval=1, resume=str(first.dir))
    again.train()

    assert before == ["1", "2", "3", "4", "5", "6", "6", "7", "8"]
    assert "train/abandoned" not in table(again)[0]
    assert [row["global_step"] for row in table(again)][6:] == ["6", *"789", "10", "11", "12", "12"]


def test_an_evaluation_that_is_done_again_is_a_row_once(make_runner):
    """The checkpoint is of the last step of an epoch, before the epoch's evaluation."""

    def fail(runner):
        raise ValueError("boom")

    callbacks = [RunDirectory(), RunRecord(), ModelCheckpoint(every="1 step")]
    first = make_runner([*callbacks, CSVLogger(), LambdaCallback(on_epoch_end=fail)])
    with pytest.raises(ValueError, match="boom"):
        first.train()

    callbacks = [RunDirectory(), RunRecord(), ModelCheckpoint()]
    again = make_runner([*callbacks, CSVLogger()], resume=str(first.dir))
    again.train()

    evaluated = [row["global_step"] for row in table(again) if row["val/loss"]]
    assert evaluated == ["6", "12"]


def test_a_full_disk_ends_no_training(make_runner, capfd: pytest.CaptureFixture[str]):
    in_the_way = LambdaCallback(on_setup=lambda runner: (runner.dir / "metrics.csv").mkdir())
    runner = make_runner([RunDirectory(), Logging(), CSVLogger(), in_the_way])

    runner.train()

    assert runner.epoch == 2
    assert capfd.readouterr().err.count("writing metrics.csv failed") == 1


def test_a_disk_that_is_full_for_a_while_leaves_no_row_twice_and_none_in_half(make_runner):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(runner):
        if runner.epoch == 1:
            table = runner.dir / "metrics.csv"
            resource.setrlimit(resource.RLIMIT_FSIZE, (table.stat().st_size + 10, limits[1]))

    def free(runner):
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def flush(runner):
        runner.callbacks["csv_logger"]._log.flush(runner.logger)

    runner = make_runner(
        [
            RunDirectory(),
            LambdaCallback(name="flush", on_step=flush),
            CSVLogger(),
            LambdaCallback(name="disk", on_epoch_start=fill, on_epoch_end=free),
        ],
        max_epochs=3,
    )
    try:
        runner.train()
    finally:
        free(runner)

    rows = table(runner)
    assert [int(row["global_step"]) for row in rows] == [2, 4, 6, 6, 8, 10, 12, 12, 14, 16, 18, 18]
    assert [row["epoch"] for row in rows] == list("000011112222")
    assert all(None not in row and float(row["time"]) > 0 for row in rows)


def test_without_a_directory_there_is_no_table(make_runner, tmp_path: Path):
    make_runner([CSVLogger()]).train()

    assert list(tmp_path.iterdir()) == []


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return CSVLogger()
