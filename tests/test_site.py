"""The site of the documentation is whole: every public name has its place, every link leads there.

What builds it is in the extra `[docs]`; without that the tests of the built site are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import danling
import danling.callbacks
from danling.callback import HOOKS
from danling.config.settings import SETTINGS
from danling.data.prepare import SETTINGS as DATALOADER_SETTINGS
from danling.files.json import loads
from danling.run.directory import RunPaths
from danling.testing import TinyRunner
from docs.generate import public_names, reference_pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = reference_pages()
BUILDERS = ("mkdocs", "material", "mkdocstrings_handlers.python")


# What is made of the code, without the builder


def test_each_public_name_has_its_place_on_one_page():
    rendered = [name for page in PAGES.values() for name in re.findall(r"^::: (\S+)", page, re.M)]

    assert sorted(rendered) == sorted(public_names().values())


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("reference/index.md", set(danling.__all__) - {"__version__", "callbacks", "errors"}),
        ("reference/callbacks.md", set(danling.callbacks.__all__)),
        ("reference/config.md", set(SETTINGS)),
        ("reference/dataloader.md", set(DATALOADER_SETTINGS)),
    ],
)
def test_a_table_of_the_reference_has_a_row_for_each(page: str, names: set[str]):
    rows = re.findall(r"^\| \[?`(\w+)`", PAGES[page], re.MULTILINE)

    assert sorted(rows) == sorted(names)
    assert re.findall(r"^\|.*\|  \|$", PAGES[page], re.MULTILINE) == []  # none without a meaning


def test_the_page_of_hooks_has_each_with_its_arguments():
    page = PAGES["reference/hooks.md"]

    assert re.findall(r"^## `(\w+)`", page, re.MULTILINE) == list(HOOKS)
    assert "def on_batch_end(self, runner, batch, output)" in page


def test_the_page_of_files_has_each_file_and_each_key_of_a_run(tmp_path: Path):
    runner = TinyRunner({"project_root": str(tmp_path)}, default_callbacks=True)
    runner.train()
    record = json.loads(runner.paths.run_json.read_text())
    index = loads((runner.checkpoint_dir / "index.json").read_text())
    checkpoint = danling.read_checkpoint(runner.checkpoint_dir / "latest.pth")

    names = {path.name for path in vars(RunPaths("x")).values()} - {"x"}
    names |= {*record, *record["launches"][0], *record["code"], *record["environment"]}
    names |= {*index, *index["checkpoints"]["latest"], *checkpoint, *runner.results[0]}
    row = loads(runner.paths.metrics.read_text().splitlines()[0])
    names |= {name for name in row if "/" not in name}

    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([^`\s]+?)/?`", page))
    assert sorted(names - described) == []


# The built site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for builder in BUILDERS:
        pytest.importorskip(builder)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return target


def links(site: Path) -> Iterator[tuple[Path, str]]:
    """Each address that a page links or loads."""
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for address in re.findall(r'(?:href|src)="([^"]+)"', text):
            yield page, unescape(address)


def test_each_link_within_the_site_leads_somewhere(site: Path):
    anchors = {
        page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
        for page in site.rglob("*.html")
    }
    lost = set()
    for page, address in links(site):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or page.name == "404.html":
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        target = target / "index.html" if target.is_dir() else target
        anchor = unescape(unquote(parts.fragment))
        if not target.exists() or (anchor and anchor not in anchors.get(target, {anchor})):
            lost.add(f"{page.relative_to(site)}: {address}")

    assert sorted(lost) == []


def test_no_page_loads_anything_from_another_host(site: Path):
    loading = r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="stylesheet"[^>]+//'

    pages = sorted(site.rglob("*.html"))

    assert len(pages) > 50
    assert [page.name for page in pages if re.search(loading, page.read_text())] == []


def test_each_public_name_has_an_anchor(site: Path):
    text = "".join(page.read_text(encoding="utf-8") for page in site.rglob("reference/**/*.html"))
    anchors = set(re.findall(r'\bid="([^"]+)"', text))

    assert sorted(set(public_names().values()) - anchors) == []
