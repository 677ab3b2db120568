from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.progress_bar import ProgressBar
from danling.errors import CallbackError

SCRIPT = """
import time, torch, danling as dl
from danling.callbacks import LambdaCallback, ProgressBar
data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
model = torch.nn.Linear(4, 1)
def slow(runner, *_):
    time.sleep(0.005)
def fail(runner, *_):
    if {fail} and runner.global_step == 15:
        raise ValueError("boom")
runner = dl.AccelerateRunner(
    dict(seed=0, max_epochs=3, log_interval=2, dataloader=dict(batch_size=4)),
    model=model, criterion=torch.nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), 0.01),
    datasets=dict(train=data, val=data), default_callbacks=False,
    callbacks=[
        ProgressBar(),
        LambdaCallback(on_step=slow, on_evaluate_batch_end=slow, on_epoch_end=fail),
    ],
)
runner.train()
"""


def on_a_terminal(script: str, columns: int = 100, **environment: str) -> str:
    """What a script writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TQDM_MININTERVAL": "0.02"} | environment,
        close_fds=True,
    )
    os.close(theirs)
    chunks = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(ours)
    child.wait()
    return b"".join(chunks).decode()


def test_a_terminal_gets_a_bar_with_loss_and_rate():
    text = on_a_terminal(SCRIPT.format(fail=False))

    drawn = re.split(r"[\r\n]+", text)
    last = [line for line in drawn if line.startswith("epoch")][-1]
    assert last.startswith("epoch 3/3: 100%|")
    assert "30/30" in last
    assert re.search(r"loss \S+", last)
    assert "val/loss" in last
    assert re.search(r"step/s|s/step", last)
    assert any(line.startswith("epoch 2/3") for line in drawn)
    assert any(line.startswith("val: ") for line in drawn)
    assert text.count("\n") - text.count("\x1b[A") == 1  # the second bar is gone


def test_a_terminal_that_does_not_know_its_width_gets_one_too():
    assert "epoch 3/3: 100%|" in on_a_terminal(SCRIPT.format(fail=False), columns=0)


def test_a_traceback_begins_on_a_line_of_its_own():
    text = on_a_terminal(SCRIPT.format(fail=True))

    lines = text.split("\n")
    assert [line.strip("\r") for line in lines if "Traceback" in line] == [
        "Traceback (most recent call last):"
    ]
    assert "15/30" not in lines[-2]


def test_elsewhere_it_is_a_line_now_and_then(make_runner, capfd: pytest.CaptureFixture[str]):
    slow = LambdaCallback(on_step=lambda runner: time.sleep(0.002))

    make_runner([ProgressBar(interval=0.05), slow], max_epochs=20).train()

    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "\r" not in captured.err
    assert 2 <= len(lines) < 30
    pattern = r"epoch \d+/20, step \d+/120 \(\d+%\), [\d.]+ step/s, [\d:]+ left, loss .*"
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

    assert re.match(r"epoch 1/2, step 9, [\d.]+ step/s", capfd.readouterr().err)


def endless_batches():
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Endless(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):
            while True:
                yield torch.ones(4), torch.ones(1)

    return DataLoader(Endless(), batch_size=4)


def test_tqdm_disable_shows_nothing_elsewhere(
    make_runner, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TQDM_DISABLE", "1")

    make_runner([ProgressBar(interval=1e-6)]).train()

    assert capfd.readouterr() == ("", "")


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
