from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from danling.callback import Callback
from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.model_checkpoint import ModelCheckpoint
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.tensorboard import TensorBoard
from danling.testing import CallbackContract


def rows_of(text: str) -> list[list[str]]:
    """The cells of the rows of the table."""
    lines = [line.partition(" ")[2] for line in text.splitlines()]
    return [line.split(" | ") for line in lines if re.match(r" *\d+/\d+ +\d+ \| ", line)]


def test_the_console_has_a_row_per_epoch(make_runner, capfd: pytest.CaptureFixture[str]):
    runner = make_runner([Logging()])

    runner.train()

    text = capfd.readouterr().err
    rows = rows_of(text)
    results = runner.results
    assert [row[0].split() for row in rows] == [["1/2", "6"], ["2/2", "12"]]
    assert [float(row[1]) for row in rows] == pytest.approx(
        [result["train"]["loss"] for result in results], abs=1e-4
    )
    assert [float(row[2]) for row in rows] == pytest.approx(
        [result["val"]["loss"] for result in results], abs=1e-4
    )
    assert text.count("epoch step | train loss | val loss |   time") == 1


def test_the_first_line_has_what_the_training_runs_on(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    runner = make_runner([RunDirectory(), Logging(), ModelCheckpoint()], seed=7)

    runner.train()

    lines = [line.partition(" ")[2] for line in capfd.readouterr().err.splitlines()]
    assert lines[0] == "cpu, 1 process, fp32, batch size 4, seed 7; saves latest and best"
    assert lines[1] == f"directory experiments/{runner.dir.name}"


def test_the_last_lines_have_the_best_the_directory_and_the_next_command(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    runner = make_runner([RunDirectory(), Logging(), TensorBoard()])

    runner.train()

    lines = [line.partition(" ")[2] for line in capfd.readouterr().err.splitlines()][-4:]
    assert re.fullmatch(r"finished after \d+\.\ds: epoch 2, step 12", lines[0])
    best, last = runner.best_score, runner.latest_score
    assert lines[1] == f"best val/loss {best:.4f} (epoch 2, step 12), last {last:.4f}"
    assert lines[2] == f"directory experiments/{runner.dir.name}"
    assert lines[3] == "next: tensorboard --logdir experiments"


def test_the_next_command_of_a_run_that_failed_goes_on_with_it(
    make_runner, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    argv = ["python", "train.py", "--resume", "auto", "--lr", "0.1", "--api_key", "abcd1234"]
    monkeypatch.setattr("sys.orig_argv", argv)

    def fail(runner):
        raise ValueError("cannot log in with password='hunter2'")

    runner = make_runner([RunDirectory(), Logging(), LambdaCallback(on_step=fail)])
    with pytest.raises(ValueError, match="hunter2"):
        runner.train()

    command = f"python train.py --lr 0.1 --api_key '***' --resume experiments/{runner.dir.name}"
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"next: {command}")
    assert "hunter2" not in runner.log_path.read_text()


@pytest.mark.parametrize("metrics", [2, 12])
def test_the_lines_fit_80_columns_whatever_is_measured(
    make_runner, capfd: pytest.CaptureFixture[str], metrics: int
):
    runner = make_runner([Logging()], max_epochs=12, monitor="val/f9" if metrics > 9 else None)
    for index in range(metrics):
        runner.metrics[f"f{index}"] = lambda output, target: (output - target).abs().mean()

    runner.train()

    text = capfd.readouterr().err
    rows = rows_of(text)
    table = [line for line in text.splitlines() if re.search(r"\d+/\d+ +\d+ \|", line)]
    assert len(rows) == 12
    assert max(len(line) for line in table) < 80
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in table}) == 1
    header = next(line for line in text.splitlines() if "train loss" in line)
    assert "val loss" in header
    if metrics > 9:
        assert "f9" in header
        assert "train/f1" in text.partition("no room for ")[2].splitlines()[0]


def test_run_log_has_the_console_s_lines_and_the_metrics(
    make_runner, capfd: pytest.CaptureFixture[str]
):
    runner = make_runner([RunDirectory(), Logging()])

    runner.train()

    console = [line.partition(" ")[2] for line in capfd.readouterr().err.splitlines()]
    log = [line[33:] for line in runner.log_path.read_text().splitlines()]
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

    text = capfd.readouterr().err
    assert [row[0].split()[1] for row in rows_of(text)] == [
        "2",
        "4",
        "6",
    ]
    assert text.index("step | val loss") < text.index("step | train loss | val loss")


def test_the_reason_of_a_stop_is_logged(make_runner, capfd: pytest.CaptureFixture[str]):
    stop = LambdaCallback(on_step=lambda runner: runner.stop("enough"))

    make_runner([Logging(), stop]).train()

    err = capfd.readouterr().err
    assert err.count("stopped: enough") == 1
    assert rows_of(err)[0][0].split() == ["1/2", "1"]
    assert err.count(" incomplete\n") == 1
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


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return Logging()
