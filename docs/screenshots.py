"""Makes the pictures of the pages: trains the digits in a terminal, opens TensorBoard in Chromium.

python -m docs.screenshots [FOLDER]

Needs `chromium` and `tmux` (Debian: `apt-get install chromium tmux`) and the extra `[test]`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from shutil import which

import numpy as np
from PIL import Image

from tests.support.tensorboard_server import Server

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
PAGES = ("timeseries", "hparams", "custom_scalars", "text")
CHARTS = ("timeseries", "custom_scalars")
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
    # forceSVG: the charts are drawn by WebGL otherwise, which is empty without a window
    open_page(f"{url}/?forceSVG=true{query}#{page}", target, size=(1500, 900))


def open_page(address: str, target: Path, size: tuple[int, int]) -> None:
    """Open a page without a window, and keep what it shows."""
    program = browser()
    assert program is not None, "there is no Chromium"
    with tempfile.TemporaryDirectory() as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=30000"]
        command += [f"--window-size={size[0]},{size[1]}", f"--screenshot={target}"]
        subprocess.run([*command, address], check=True, capture_output=True, timeout=180)


def train_digits(root: Path) -> Path:
    """Three seeds each of two learning rates, as a user starts them."""
    shutil.copy(ROOT / "examples" / "digits.py", root / "train.py")
    for rate in ("0.003", "0.01"):
        for seed in ("0", "1", "2"):
            flags = ["--optim.lr", rate, "--seed", seed]
            command = [sys.executable, "train.py", *flags]
            subprocess.run(command, cwd=root, env=ENVIRONMENT, check=True, capture_output=True)
    return root / "experiments"


def capture_terminal(root: Path, columns: int, rows: int = 40) -> str:
    """What a terminal shows at the end of a training; tmux is the terminal."""
    root.mkdir()
    shutil.copy(ROOT / "examples" / "digits.py", root / "digits.py")
    tmux = ["tmux", "-L", f"danling-{columns}"]
    size = ["-x", str(columns), "-y", str(rows)]
    shell = ["env", "PS1=$ ", "bash", "--norc", "--noprofile"]
    new = [*tmux, "-f", "/dev/null", "new-session", "-d", *size, "-c", str(root), *shell]
    subprocess.run(new, env=ENVIRONMENT, check=True)
    try:
        command = "clear; python digits.py --optim.lr 0.01 --seed 3 --max-epochs 8"
        subprocess.run([*tmux, "send-keys", command, "Enter"], check=True)
        text = ""
        while "curves in the browser" not in text:
            time.sleep(0.5)
            show = [*tmux, "capture-pane", "-p", "-J", "-S", "-200"]
            text = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    lines = text[: text.index("\nepoch  train loss")].strip().splitlines()
    return "\n".join(["$ python digits.py --optim.lr 0.01 --seed 3 --max-epochs 8", *lines])


def draw_terminal(text: str, target: Path) -> None:
    """A picture of what a terminal shows."""
    lines = text.splitlines()
    width, height = 9 * max(map(len, lines)) + 40, 19 * len(lines) + 32
    style = "margin:0;padding:16px 20px;background:#1e1e1e;color:#ddd;font:15px/19px monospace"
    page = f'<meta charset="utf-8"><body style="margin:0"><pre style="{style}">{escape(text)}</pre>'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "terminal.html")
        file.write_text(page, encoding="utf-8")
        open_page(file.as_uri(), target, size=(width, height))


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        for columns in (80, 120):
            text = capture_terminal(Path(root, str(columns)), columns)
            if columns == 80:
                draw_terminal(text, folder / "terminal.png")
        logs = train_digits(Path(root))
        with Server(logs, fast=True, runs=8) as server:
            for run in server.get("runs"):
                tag = "~seeds/val/loss/mean" if "-seeds-" in run else "val/loss"
                server.wait_until(lambda run=run, tag=tag: len(server.scalars(run, tag)) > 1)
            for page in PAGES:
                target = folder / f"tensorboard-{page}.png"
                for _ in range(TRIES):  # on a busy machine the charts may come too late
                    take_screenshot(server.url, page, target)
                    if page not in CHARTS or warm_pixels(target) > 1000:
                        break


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
