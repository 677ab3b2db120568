"""Makes the pictures of the README: trains the digits, starts TensorBoard, opens it in Chromium.

python -m docs.screenshots [FOLDER]

Needs `chromium` (Debian: `apt-get install chromium`) and the extra `[test]`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

import numpy as np
from PIL import Image

from tests.support.digits_run import LAST_STEP, make_digits_runner
from tests.support.tensorboard_server import Server

PAGES = ("timeseries", "hparams", "custom_scalars")
CHARTS = ("timeseries", "custom_scalars")
TAGS = "^(train|val)/(loss|accuracy)$"
TRIES = 5
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """The program to open pages with, where there is one."""
    return next(filter(None, map(which, BROWSERS)), None)


def warm_pixels(picture: Path) -> int:
    """How much in the middle of a page is red to yellow: lines are, text and buttons are not."""
    with Image.open(picture) as image:
        middle = image.convert("RGB").crop((310, 130, 1240, 890))
    pixels = np.asarray(middle).astype(int)
    return int((pixels[..., 0] - pixels[..., 2] > 60).sum())


def take_screenshot(url: str, page: str, target: Path, query: str = "") -> None:
    """Open a page of TensorBoard without a window, and keep what it shows."""
    program = browser()
    assert program is not None, "there is no Chromium"
    with tempfile.TemporaryDirectory() as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=30000"]
        command += ["--window-size=1500,900", f"--screenshot={target}"]
        # forceSVG: the charts are drawn by WebGL otherwise, which is empty without a window
        address = f"{url}/?forceSVG=true{query}#{page}"
        subprocess.run([*command, address], check=True, capture_output=True, timeout=180)


def train_digits(root: Path) -> Path:
    """Three seeds each of two learning rates, and the bands over the seeds that come of it."""
    labels = root / "experiments"
    labels.mkdir()
    bands: set[Path] = set()
    for rate in (0.003, 0.01):
        for seed in range(3):
            runner = make_digits_runner(str(root / "runs"), seed, optim={"lr": rate})
            runner.callbacks.remove("log_attempt")
            runner.train()
            (labels / f"lr={rate} seed={seed} {runner.run_id[:8]}").symlink_to(runner.dir)
        [band] = set(runner.dir.parent.glob("digits-seeds-*")) - bands
        bands.add(band)
        (labels / f"lr={rate} seeds").symlink_to(band)
    return labels


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        logs = train_digits(Path(root))
        with Server(logs, fast=True, runs=8) as server:
            for run in server.get("runs"):
                tag = "~seeds/val/loss/mean" if run.endswith("seeds") else "val/loss"
                server.wait_until(
                    lambda run=run, tag=tag: server.scalars(run, tag)[-1][0] == LAST_STEP
                )
            for page in PAGES:
                query = f"&tagFilter={TAGS}" if page == "timeseries" else ""
                target = folder / f"tensorboard-{page}.png"
                for _ in range(TRIES):  # on a busy machine the charts may come too late
                    take_screenshot(server.url, page, target, query)
                    if page not in CHARTS or warm_pixels(target) > 1000:
                        break


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
