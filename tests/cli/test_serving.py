"""TensorBoard on a folder of links that follows a filter."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import danling as dl
from danling.callbacks import TensorBoard
from danling.cli.main import main
from danling.cli.serving import labels, link, write_bands
from danling.testing import TinyRunner
from tests.support.runs import make_run


def train(seed: int, width: int = 1) -> None:
    config = {"seed": seed, "width": width, "max_epochs": 2}
    TinyRunner(config, callbacks=[TensorBoard()], default_callbacks=True).train()


def test_links_have_readable_names_and_follow_the_filter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "experiments"
    for number, rate in ((1, 0.1), (2, 0.2)):
        make_run(root, number, config={"optim": {"lr": rate}})
    assert main(["tensorboard"]) == 1  # no run has events
    for run in dl.runs():
        (run.path / "events.out.tfevents.1").write_text("")
    capsys.readouterr()

    assert main(["tensorboard", "-F", "optim.lr < 1", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)["data"]
    assert sorted(told) == ["tiny-run optim.lr=0.1", "tiny-run optim.lr=0.2"]
    farm = tmp_path / "farm"
    farm.mkdir()
    link(farm, dl.runs())
    assert sorted(entry.name for entry in farm.iterdir()) == sorted(told)
    link(farm, dl.runs().filter("optim.lr == 0.1"))
    assert [entry.name for entry in farm.iterdir()] == ["tiny-run"]
    assert labels(dl.runs()).keys() == told.keys()


def test_a_band_is_written_anew_when_its_runs_are_others(tmp_path: Path):
    farm = tmp_path / "farm"
    farm.mkdir()
    written: dict[Path, list[Path]] = {}
    train(0)
    write_bands(farm, dl.runs(), written)
    assert written == {}

    train(1)
    write_bands(farm, dl.runs(), written)

    (band,) = written
    files = {path: path.stat().st_mtime_ns for path in band.iterdir()}
    write_bands(farm, dl.runs(), written)
    assert {path: path.stat().st_mtime_ns for path in band.iterdir()} == files
    train(2)
    write_bands(farm, dl.runs(), written)
    assert len(written[band]) == 3
    assert {path: path.stat().st_mtime_ns for path in band.iterdir()} != files
    write_bands(farm, dl.runs()[:1], written)
    assert written == {}
    assert not band.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """A TensorBoard on the runs whose width is 1; the value asks it for its runs."""
    train(0)
    train(1, width=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "danling", "tensorboard", "-F", "width == 1"]
    command += ["--port", str(port), "--every", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    def shown() -> list[str]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=10) as answer:
                found: list[str] = json.load(answer)
                return found
        except OSError:
            return []

    yield shown
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_new_runs_of_the_filter_and_their_band_appear(server: Callable[[], list[str]]):
    wait_until(lambda: len(server()) == 1)

    train(1)
    train(2, width=2)

    wait_until(lambda: len(server()) == 3)
    names = sorted(server())
    assert [re.sub("[0-9a-f]{8}", "ID", name) for name in names] == [
        "danling-run seed=0",
        "danling-run seed=1",
        "seeds danling-run ID",
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
