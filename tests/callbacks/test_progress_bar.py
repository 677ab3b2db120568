from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from functools import partial
from typing import Self

import pytest

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.model_checkpoint import ModelCheckpoint
from danling.callbacks.progress_bar import ProgressBar
from danling.callbacks.run_directory import RunDirectory
from danling.errors import CallbackError
from danling.testing import CallbackContract
from tests.support.calls import calls_of
from tests.support.clock import SetClock


class Terminal:
    """While it is open, stderr is a terminal; `text` is what was written to it."""

    def __init__(self, rows: int = 30, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._file = open(theirs, "w")  # noqa: SIM115  # closed on exit
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read)

    @property
    def text(self) -> str:
        return b"".join(self._chunks).decode()

    def __enter__(self) -> Self:
        self._reader.start()
        self._before, sys.stderr = sys.stderr, self._file
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._before
        self._file.close()
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:  # meanwhile: a terminal that nobody reads blocks
        with contextlib.suppress(OSError):  # the other side is closed
            while chunk := os.read(self._ours, 65536):
                self._chunks.append(chunk)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    return SetClock(monkeypatch)


def test_a_terminal_gets_a_bar_with_loss_and_rate(make_runner, clock: SetClock):
    def pause(*_) -> None:
        clock.pass_time(1)

    slow = LambdaCallback(on_step=pause, on_evaluate_batch_end=pause)

    with Terminal() as terminal:
        make_runner([ProgressBar(), slow]).train()

    text = terminal.text
    drawn = re.split(r"[\r\n]+", text.replace("\x1b[A", ""))
    last = [line for line in drawn if line.startswith("epoch")][-1]
    assert last.startswith("epoch 2/2: 100%|")
    assert "12/12" in last
    assert re.search(r"[^/]loss [\d.]+, val/loss [\d.]+", last)
    assert re.search(r"step/s|s/step", last)
    assert any(line.startswith("epoch 1/2") for line in drawn)
    assert any(line.startswith("val: ") for line in drawn)
    assert all(len(line) <= 100 for line in drawn)
    assert text.count("\n") - text.count("\x1b[A") == 1  # the second bar is gone


def test_a_line_of_the_log_is_above_the_bar(make_runner, clock: SetClock):
    with Terminal() as terminal:
        make_runner([ProgressBar(), Logging(), clock.each_step_takes(1)]).train()

    lines = [re.split(r"\r", line)[-1] for line in re.split(r"\r?\n", terminal.text)]
    rows = [line for line in lines if re.search(r" [12]/2 +\d+ \| ", line)]
    assert len(rows) == 2
    assert not any("%|" in row for row in rows)


def test_a_terminal_that_does_not_know_its_size_gets_a_bar_too(make_runner):
    with Terminal(rows=0, columns=0) as terminal:
        make_runner([ProgressBar()]).train()

    assert "epoch 2/2: 100%|" in terminal.text


def test_a_dumb_terminal_gets_plain_lines(make_runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")

    with Terminal() as terminal:
        runner = make_runner([ProgressBar(), Logging()])
        runner.train()
        runner.evaluate("val")

    text = terminal.text.replace("\r\n", "\n")
    assert "\x1b" not in text
    assert "\r" not in text
    assert "step 12/12 (100%)" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_no_number_is_cut_off_at_the_edge_of_the_terminal(
    make_runner, columns: int, clock: SetClock
):
    def log(runner):
        clock.pass_time(1)
        runner.log({f"metric{index}": 0.12345 for index in range(6)})

    with Terminal(columns=columns) as terminal:
        make_runner([ProgressBar(), LambdaCallback(on_step=log)]).train()

    drawn = [line for line in re.split(r"[\r\n]+", terminal.text) if "loss" in line]
    assert drawn
    assert all(len(line) <= columns for line in drawn)
    assert all(re.search(r"(metric\d|loss) \d\.\d{4}\]$", line.rstrip()) for line in drawn)


def test_in_a_notebook_lines_and_progress_come_on_stdout(tmp_path):
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    code = (
        "from tests.callbacks.conftest import make_tiny_runner\n"
        "from danling.callbacks import Logging, ProgressBar\n"
        "make_tiny_runner([Logging(), ProgressBar()]).train()"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])

    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = notebook.cells[0].outputs
    text = {"stdout": "", "stderr": ""}
    for output in outputs:
        if output["output_type"] == "stream":
            text[output["name"]] += output["text"]
    assert "epoch" not in text["stderr"]  # there are warnings of other libraries
    assert "finished after" in text["stdout"]
    widgets = [output for output in outputs if output["output_type"] == "display_data"]
    assert widgets or "12/12 [" in text["stdout"]


def test_what_follows_an_exception_begins_on_a_line_of_its_own(make_runner):
    def fail(runner):
        if runner.global_step == 9:
            raise ValueError("boom")

    with Terminal() as terminal, pytest.raises(ValueError, match="boom"):
        make_runner([ProgressBar(), LambdaCallback(on_step=fail)]).train()

    assert "9/12" in terminal.text
    assert terminal.text.endswith("\n")


def test_an_evaluation_and_a_prediction_of_their_own_have_a_bar(make_runner):
    runner = make_runner([ProgressBar()])

    with Terminal() as terminal:
        runner.evaluate("val")
        runner.predict("val")

    assert terminal.text.count("val:   0%") == 2


def test_tqdm_disable_shows_nothing(
    make_runner, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TQDM_DISABLE", "1")

    with Terminal() as terminal:
        runner = make_runner([ProgressBar()])
        runner.train()
        runner.evaluate("val")
    make_runner([ProgressBar(interval=1e-6)]).train()

    assert terminal.text == ""
    assert capfd.readouterr() == ("", "")


def test_elsewhere_it_is_a_line_now_and_then(
    make_runner, capfd: pytest.CaptureFixture[str], clock: SetClock
):
    pace = clock.each_step_takes(5)

    make_runner([ProgressBar(interval=60), pace], max_epochs=6).train()

    captured = capfd.readouterr()
    assert captured.out == ""
    assert "\r" not in captured.err
    lines = [
        re.sub(r"(, (?:val/)?loss) [\d.]+", r"\1 x", line) for line in captured.err.splitlines()
    ]
    assert [line.partition(" ")[2] for line in lines] == [
        "epoch 2/6, step 12/36 (33%), 0.2 step/s, 02:00 left, loss x",
        "epoch 4/6, step 24/36 (67%), 0.2 step/s, 01:00 left, loss x",
        "epoch 6/6, step 36/36 (100%), 0.2 step/s, loss x, val/loss x",
        "epoch 6/6, step 36/36 (100%), 0 step/s",
    ]


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_what_is_shown_of_a_resumed_run_begins_where_it_goes_on(
    make_runner, capfd: pytest.CaptureFixture[str], clock: SetClock, on_a_terminal: bool
):
    """The steps before took time, too: they count neither as done now nor for what is left."""
    stop = LambdaCallback(on_step=lambda runner: runner.global_step < 8 or runner.stop("enough"))
    first = make_runner([RunDirectory(), ModelCheckpoint("1 step"), stop], max_epochs=3)
    first.train()
    clock.pass_time(1000)
    capfd.readouterr()

    parts = [RunDirectory(), ProgressBar(interval=10), clock.each_step_takes(5)]
    again = make_runner(parts, max_epochs=3, resume=str(first.dir))
    with Terminal() if on_a_terminal else contextlib.nullcontext() as terminal:
        again.train()

    text = terminal.text if terminal is not None else capfd.readouterr().err
    if on_a_terminal:
        shown = re.findall(r" (\d+)%\|[^|]*\| (\d+)/18 ", text)
        assert shown == [(f"{steps / 18:.0%}"[:-1], str(steps)) for steps in (8, *range(9, 19), 18)]
    else:
        shown = re.findall(r"step (\d+)/18 \((\d+)%\)(?:, 0.2 step/s, (\d\d:\d\d) left)?", text)
        assert shown == [
            *(("10", "56", "00:40"), ("12", "67", "00:30"), ("14", "78", "00:20")),
            *(("16", "89", "00:10"), ("18", "100", ""), ("18", "100", "")),
        ]


@pytest.mark.parametrize("epochs", [400, pytest.param(1700, marks=pytest.mark.exhaustive)])
def test_a_long_training_writes_little(make_runner, capfd: pytest.CaptureFixture[str], epochs: int):
    make_runner([ProgressBar()], max_epochs=epochs, evaluate_every=None).train()

    text = capfd.readouterr().err
    assert len(text) < 100_000 * (6 * epochs) / 10_000
    assert "\r" not in text
    assert f"step {6 * epochs}/{6 * epochs} (100%)" in text


def test_a_length_that_is_not_known_is_not_shown(make_runner, capfd: pytest.CaptureFixture[str]):
    stop = LambdaCallback(on_step=lambda runner: runner.global_step < 9 or runner.stop("enough"))
    runner = make_runner([ProgressBar(), stop])
    del runner.datasets["train"]
    runner.dataloaders["train"] = endless_batches()

    runner.train()

    assert re.match(r"[\d:]{8} epoch 1/2, step 9, [\d.]+ step/s", capfd.readouterr().err)


def endless_batches():
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.ones(4), torch.ones(1)

    return DataLoader(Endless(), batch_size=4)


def test_a_step_costs_a_look_at_the_clock(make_runner):
    bar = ProgressBar()
    called: list[str] = []

    def watch(runner):
        if runner.global_step == 3:
            called.extend(calls_of(partial(bar.on_step, runner)))

    make_runner([bar, LambdaCallback(on_step=watch)], max_epochs=1).train()

    assert called == ["on_step", "monotonic"]


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_that_cannot_be_meant_is_an_error_at_once(interval: float):
    with pytest.raises(CallbackError, match="must be positive"):
        ProgressBar(interval)


class TestContract(CallbackContract):
    def make(self):
        return ProgressBar()
