"""A training whose time is up on one process is evaluated on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import danling as dl
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression

pytestmark = pytest.mark.distributed


def training(folder: Path) -> None:
    class Late(dl.Callback):
        def on_step(self, runner: Any) -> None:
            if runner.rank == 1 and runner.global_step == 2:
                runner.stop("its time is up", evaluate=True)

    config = {"max_epochs": 9, "poll_interval": 1}
    runner = Regression(folder, config, samples={"train": 80}, callbacks=[Late()])
    runner.train()
    leave(folder, [runner.global_step, runner.evaluations, runner.latest_result])


def test_all_evaluate_when_one_asks(tmp_path: Path) -> None:
    succeed(2, training, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[:2] == [2, 1]
    assert "val" in first[2]
