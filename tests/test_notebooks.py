"""The notebooks of the documentation run, and show what a reader of them sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells of code of a notebook, after it has run."""
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    return [cell for cell in notebook.cells if cell["cell_type"] == "code"]


def texts(cells: list[Any], stream: str) -> str:
    outputs = [output for cell in cells for output in cell["outputs"]]
    return "".join(output["text"] for output in outputs if output.get("name") == stream)


def shown(cells: list[Any], kind: str) -> list[str]:
    """What cells show besides text, as of a kind of MIME."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)

    assert [cell for cell in notebook.cells if cell.get("outputs")] == []


def test_a_training_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = run("first_run", tmp_path, monkeypatch)

    assert "best val/accuracy" in texts(cells, "stdout")
    assert "epoch" not in texts(cells, "stderr")  # there may be warnings of other libraries
    bars = shown(cells, "application/vnd.jupyter.widget-view+json")
    assert bars or "80/80 [" in texts(cells, "stdout")
    [table] = [html for html in shown(cells, "text/html") if "AccelerateRunner" in html]
    assert "finished: epoch 5, step 80" in table
    assert cells[-1]["outputs"][-1]["data"]["text/plain"] == "7"


def test_runs_are_compared_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = run("compare_runs", tmp_path, monkeypatch)

    tables = shown(cells, "text/html")
    assert any(html.count("<tr") >= 5 for html in tables)
    assert any("lr=0.1 seed=" in html for html in tables[1:])
    assert "2 of 4" in texts(cells, "stdout")
