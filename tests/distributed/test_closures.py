"""Optimizers that evaluate the model themselves, on two processes: equal, and resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.processes import succeed, together
from tests.support import closing

pytestmark = pytest.mark.distributed


def training(root: Path, case: str, kill_at: int | None, accumulation: int) -> None:
    options = {"cpu": True, "gradient_accumulation_steps": accumulation}
    config: dict[str, Any] = {"accelerate": options, "max_grad_norm": 1.0, "evaluate_every": None}
    closing.train(root, case, kill_at, config)


@pytest.mark.parametrize("case", ["lbfgs", "wolfe", "sam", "climbed", "armijo"])
def test_two_processes_learn_as_one_that_has_the_batches_of_both(case: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    succeed(1, training, one, case, None, 2, folder=one)
    succeed(2, training, two, case, None, 1, folder=two)

    alone, first, second = closing.outcome(one), closing.outcome(two), closing.outcome(two, 1)
    assert first["digest"] == second["digest"]
    assert first["steps"] == alone["steps"] == closing.EPOCHS * closing.BATCHES // 2
    for found, expected in zip(first["weights"], alone["weights"], strict=True):
        assert np.ravel(found) == pytest.approx(np.ravel(expected), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("case", ["wolfe", "sam"])
def test_one_that_is_killed_goes_on_exactly(case: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    succeed(2, training, whole, case, None, 2, folder=whole)
    ended = together(2, training, killed, case, 3, 2, folder=killed)
    assert -signal.SIGKILL in ended.codes, ended.output
    succeed(2, training, killed, case, None, 2, folder=killed)

    first, second = closing.outcome(whole), closing.outcome(killed)
    assert first.pop("report") is None
    assert second.pop("report") == [True, []]
    assert second == first
