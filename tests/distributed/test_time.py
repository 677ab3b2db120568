"""Clocks of processes differ: what is due by time is due on all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.seed import derive
from danling.testing import TinyRunner
from tests.distributed.processes import leave, results, succeed
from tests.support.clock import SetClock


def train(folder: Path, slower: float) -> None:
    torch.set_num_threads(1)
    saves: list[int] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = SetClock(monkeypatch)
        config: dict[str, Any] = {
            "project_root": str(folder / "experiments"),
            "max_epochs": 4,
            "evaluate_every": "15 s",
            "poll_interval": 1,
            "accelerate": {"cpu": True},
        }
        pace = clock.each_step_takes(10)
        runner = TinyRunner(config, samples=32, callbacks=[pace], default_callbacks=True)
        if runner.rank == 1:
            clock.pass_time(1000)
            runner.callbacks.remove(pace)
            runner.callbacks.append(clock.each_step_takes(10 + slower))
        runner.callbacks.append(ModelCheckpoint("35 s"))
        runner.callbacks.append(
            LambdaCallback(on_save=lambda runner, path: saves.append(runner.global_step))
        )
        runner.train()
    steps = [result["global_step"] for result in runner.results]
    leave(folder, {"steps": steps, "saves": saves, "seconds": runner.now().seconds})


@pytest.mark.parametrize("slower", [0, 7, -7])
def test_what_is_due_by_time_is_due_on_all_processes_at_once(tmp_path: Path, slower: float):
    succeed(2, train, tmp_path, slower, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert len(first["steps"]) >= 4
    assert len(first["saves"]) >= 4


def draw(folder: Path) -> None:
    numbers: list[float] = []
    drawing = LambdaCallback(on_batch_start=lambda *_: numbers.append(torch.rand(()).item()))
    runner = TinyRunner({"accelerate": {"cpu": True}, "seed": 3}, callbacks=[drawing])
    weight = runner.model.weight.detach().tolist()
    runner.train()
    leave(folder, {"numbers": numbers, "weight": weight})


def test_each_process_draws_from_a_stream_of_its_own(tmp_path: Path):
    succeed(2, draw, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first["weight"] == second["weight"]
    assert not set(first["numbers"]) & set(second["numbers"])
    torch.manual_seed(derive(3, "rank", 1))
    assert second["numbers"] == [torch.rand(()).item() for _ in second["numbers"]]
