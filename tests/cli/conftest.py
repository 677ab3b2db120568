"""Three runs of two learning rates, which the commands read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the runs, each with another score."""
    root = tmp_path / "experiments"
    for number, (rate, score) in enumerate([(0.1, 0.5), (0.1, 0.7), (1.0, 0.9)], 1):
        config = {"optim": {"lr": rate}, "seed": number % 2}
        make_run(root, number, score=score, config=config, run_id=f"{number:032x}")
    return root
