"""The report, also as a browser shows it."""

from __future__ import annotations

import subprocess
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import pytest

import danling as dl
from danling.experiments.reports.html import report
from tests.support.runs import make_run

BROWSER = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "br"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "experiments"
    for number in range(10):
        config = {"optim": {"lr": 0.1 if number < 5 else 0.01}, "seed": number % 5}
        path = make_run(root, number + 1, score=0.5 + number / 100, config=config)
        (path / "run.log").write_text("a line of the log <b>\n" * 5000)
        (path / "metadata").mkdir()
        (path / "metadata" / "code.patch").write_text("+changed = '<script>'\n" * 50_000)
    return root


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_ten_runs_are_one_small_file_that_needs_no_other(root: Path):
    page = report(dl.runs(root), "Ten & more")

    assert len(page.encode()) < 1_000_000
    assert "<script" not in page
    assert "src=" not in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "@media print" in page
    assert page.count("<details>") == 10
    assert "<title>Ten &amp; more</title>" in page
    assert "(5 seeds)" in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def chromium(page: Path, *flags: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(BROWSER is None, reason="apt-get install chromium")
def test_a_browser_has_nothing_to_complain_about_in_light_and_in_dark(root: Path, tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    page = tmp_path / "report.html"
    page.write_text(report(dl.runs(root)), encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing()</script>")
    assert "CONSOLE" in chromium(broken, "--dump-dom")

    corners = {}
    for name, number in (("dark", 0), ("light", 1)):
        target = tmp_path / f"{name}.png"
        scheme = f"--blink-settings=preferredColorScheme={number}"
        told = chromium(page, scheme, "--window-size=1200,1600", f"--screenshot={target}")
        assert "CONSOLE" not in told
        with image.open(target) as shot:
            picture = shot.convert("L")
            corners[name] = picture.getpixel((2, 2))
            darkest, brightest = picture.getextrema()
            assert brightest - darkest > 180  # text is read on either

    assert corners["dark"] < 60
    assert corners["light"] > 200
