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
import time
from functools import partialmethod
from typing import Self

import pytest
from tqdm import tqdm

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.progress_bar import ProgressBar
from danling.errors import CallbackError
from danling.testing import CallbackContract


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


def pause(runner, *_) -> None:
    time.sleep(0.005)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw often, so that a short training is seen."""
    monkeypatch.setattr(tqdm, "__init__", partialmethod(tqdm.__init__, mininterval=0.01))


@pytest.mark.usefixtures("eager")
def test_a_terminal_gets_a_bar_with_loss_and_rate(make_runner):
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


@pytest.mark.usefixtures("eager")
def test_a_line_of_the_log_is_above_the_bar(make_runner):
    slow = LambdaCallback(on_step=pause)

    with Terminal() as terminal:
        make_runner([ProgressBar(), Logging(), slow]).train()

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


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("columns", [80, 120])
def test_no_number_is_cut_off_at_the_edge_of_the_terminal(make_runner, columns: int):
    def log(runner):
        time.sleep(0.005)
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


def test_elsewhere_it_is_a_line_now_and_then(make_runner, capfd: pytest.CaptureFixture[str]):
    slow = LambdaCallback(on_step=lambda runner: time.sleep(0.002))

    make_runner([ProgressBar(interval=0.05), slow], max_epochs=20).train()

    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "\r" not in captured.err
    assert 2 <= len(lines) < 30
    pattern = (
        r"\d\d:\d\d:\d\d epoch \d+/20, step \d+/120 \(\d+%\), [\d.]+ step/s, [\d:]+ left, loss .*"
    )
    assert all(re.fullmatch(pattern, line) for line in lines[:-1])


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
    costs: list[float] = []

    def measure(runner):
        if runner.global_step == 3:
            for _ in range(5):
                started = time.perf_counter()
                for _ in range(1000):
                    bar.on_step(runner)
                costs.append((time.perf_counter() - started) / 1000)

    make_runner([bar, LambdaCallback(on_step=measure)], max_epochs=1).train()

    assert min(costs) < 1e-6


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_that_cannot_be_meant_is_an_error_at_once(interval: float):
    with pytest.raises(CallbackError, match="must be positive"):
        ProgressBar(interval)


class TestContract(CallbackContract):
    def make(self):
        return ProgressBar()
