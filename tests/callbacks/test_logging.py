from __future__ import annotations

import logging
from pathlib import Path

import pytest

from danling.callback import Callback
from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.run_directory import RunDirectory


def test_the_console_has_a_line_per_epoch(make_runner, capfd: pytest.CaptureFixture[str]):
    make_runner([Logging()]).train()

    lines = [line for line in capfd.readouterr().err.splitlines() if " epoch " in line]
    assert len(lines) == 3
    assert [line.split(" | ")[:2] for line in lines[:2]] == [
        [lines[0].split(" | ")[0], "step  6/12"],
        [lines[1].split(" | ")[0], "step 12/12"],
    ]
    assert "train loss" in lines[0]
    assert "val loss" in lines[0]
    assert "finished after" in lines[2]
    assert "best val/loss" in lines[2]


def test_the_lines_of_epochs_are_a_table(make_runner, capfd: pytest.CaptureFixture[str]):
    make_runner([Logging()], max_epochs=12).train()

    lines = [line for line in capfd.readouterr().err.splitlines() if "train loss" in line]
    columns = {tuple(i for i, c in enumerate(line) if c == "|")[:4] for line in lines}
    assert len(lines) == 12
    assert len(columns) == 1


def test_run_log_has_the_console_s_lines_and_the_metrics(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    runner = make_runner([RunDirectory(), Logging()])

    runner.train()

    console = [line.partition(" ")[2] for line in capfd.readouterr().err.splitlines()]
    log = [line.split(maxsplit=3)[3] for line in runner.log_path.read_text().splitlines()]
    rows = [line for line in log if line.startswith("step ") and " | " in line]
    assert [line.rstrip() for line in log if line not in rows] == [
        line.rstrip() for line in console
    ]
    assert len(rows) >= 6
    assert "train/loss" in rows[0]


def test_each_line_is_once_where_the_root_logger_prints_too(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    root = logging.getLogger()
    handler = logging.StreamHandler()
    root.addHandler(handler)
    level, handlers = root.level, list(root.handlers)
    try:
        for _ in range(2):
            runner = make_runner(
                [
                    RunDirectory(),
                    Logging(),
                    LambdaCallback(on_epoch_end=lambda runner: runner.logger.info("mine")),
                ],
                max_epochs=1,
            )
            runner.train()
        after = (root.level, list(root.handlers))
    finally:
        root.removeHandler(handler)

    assert capfd.readouterr().err.count("mine") == 2
    assert runner.log_path.read_text().count("mine") == 1
    assert after == (level, handlers)


def test_an_evaluation_within_an_epoch_has_a_line_of_its_own(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    make_runner([Logging()], max_epochs=1, evaluate_every="2 steps").train()

    lines = [line for line in capfd.readouterr().err.splitlines() if "val loss" in line]
    steps = [line.split(" | ")[1].strip() for line in lines]
    assert steps[:2] == ["step 2/6", "step 4/6"]
    assert all("train loss" not in line for line in lines[:2])


def test_the_reason_of_a_stop_is_logged(make_runner, capfd: pytest.CaptureFixture[str]):
    stop = LambdaCallback(on_step=lambda runner: runner.stop("enough"))

    make_runner([Logging(), stop]).train()

    err = capfd.readouterr().err
    assert err.count("stopped: enough") == 1
    assert "epoch 1/2 | step  1/12 | train loss" in err
    assert err.count("| incomplete") == 1
    assert "stopped after" in err


def test_an_exception_is_in_run_log_with_its_traceback_and_once_in_the_last_line(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    def fail(runner):
        raise ValueError("boom")

    runner = make_runner([RunDirectory(), Logging(), LambdaCallback(on_step=fail)])
    with pytest.raises(ValueError, match="boom"):
        runner.train()

    console, log = capfd.readouterr().err, runner.log_path.read_text()
    assert "Traceback" not in console  # Python prints it when the script ends
    assert "error: failed after" in console
    assert "ValueError: boom" in console
    assert log.count("Traceback") == 1
    assert "in fail" in log


def test_a_second_launch_appends(make_runner):
    runner = make_runner([RunDirectory(), Logging()], max_epochs=1)
    runner.train()
    first = runner.log_path.read_text()

    runner.config.max_epochs = 2
    runner.train()

    assert runner.log_path.read_text().startswith(first)
    assert runner.log_path.read_text().count("finished after") == 2
    assert runner.logger.handlers == []


def test_an_evaluation_without_a_training_logs_nothing(
    make_runner, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    make_runner([RunDirectory(), Logging()]).evaluate("val")

    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_the_list_does_not_matter(make_runner):
    def names(callbacks: list[Callback]) -> list[str]:
        runner = make_runner(callbacks)
        runner.train()
        return sorted(path.name for path in runner.dir.iterdir())

    assert names([RunDirectory(), Logging()]) == names([Logging(), RunDirectory()])
