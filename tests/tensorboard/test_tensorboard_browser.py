"""The pages of TensorBoard as a browser draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from danling.config.config import Config
from danling.tensorboard.bands import write_band
from danling.tensorboard.event_file import EventWriter
from danling.tensorboard.hparams import of_config, session_end, session_start
from danling.tensorboard.pages import layout
from docs.screenshots import browser, take_screenshot, warm_pixels
from tests.support.tensorboard_server import Server

pytestmark = pytest.mark.skipif(browser() is None, reason="needs chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    logs = tmp_path_factory.mktemp("browser") / "logs"
    for seed in range(3):
        run = logs / f"seed={seed}"
        run.mkdir(parents=True)
        values, group = of_config(Config(seed=seed, lr=0.1), "")
        with EventWriter(run) as writer:
            writer.add([session_start(values, group, 0.0), layout(["loss"])], step=0)
            for step in range(1, 100):
                loss = math.exp(-step / 30) + math.sin(step + seed) / 10
                writer.add_scalars({"train/loss": loss, "val/loss": loss + seed / 10}, step)
            writer.add(session_end("finished", 1.0), step=100)
    write_band(logs / "seeds", [logs / f"seed={seed}" for seed in range(3)])
    with Server(logs, fast=True, runs=4) as running:
        running.wait_until(lambda: len(running.scalars("seeds", "~seeds/val/loss/mean")) == 99)
        yield running


@pytest.mark.parametrize(
    "page", [pytest.param("timeseries", marks=pytest.mark.exhaustive), "custom_scalars"]
)
def test_a_page_of_charts_draws_its_lines(page: str, server: Server, tmp_path: Path):
    picture = tmp_path / f"{page}.png"

    drawn = 0
    for _ in range(3):  # on a busy machine they may come after the time of the picture
        if drawn < 1000:
            take_screenshot(server.url, page, picture)
            drawn = warm_pixels(picture)

    assert drawn >= 1000
