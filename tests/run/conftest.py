"""The project that runs of these tests are of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.repositories import make_repository


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the main script in it."""
    folder = make_repository(tmp_path / "project")
    script = str(folder / "train.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    monkeypatch.chdir(folder)
    return folder
