from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from danling.callbacks import LambdaCallback, SlowRankDetector
from danling.callbacks.slow_rank_detector import ratios, slow_ranks
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression


class TestContract(CallbackContract):
    def make(self):
        return SlowRankDetector("2 steps")


class Timed(SlowRankDetector):
    """Has a clock that goes on with each look at it, and faster on a slow process."""

    def __init__(self, every: str, tick: float) -> None:
        super().__init__(every)
        self.tick, self.seconds, self.looks = tick, 0.0, 0

    def _now(self) -> float:
        self.looks += 1
        self.seconds += self.tick
        return self.seconds


def train(folder: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("danling.run").addHandler(handler)
    detector = Timed("3 steps", tick=4.0 if os.environ["RANK"] == "1" else 1.0)
    logged: list[float] = []
    look = LambdaCallback(
        on_log=lambda runner, metrics: logged.extend(
            value for tag, value in metrics.items() if tag == "perf/slowest_rank_ratio"
        )
    )
    runner = Regression(folder, {"max_epochs": 1}, callbacks=[detector, look])
    runner.train()
    leave(
        folder,
        {
            "slow": {str(rank): ratio for rank, ratio in detector.slow.items()},
            "logged": logged,
            "looks": detector.looks,
            "said": said,
            "hooks": len(runner.unwrapped_model._forward_hooks),
        },
    )


@pytest.mark.distributed
def test_the_slow_one_of_two_processes_is_named_on_both(tmp_path):
    succeed(2, train, tmp_path, folder=tmp_path)

    found = results(tmp_path, 2)
    assert [result["slow"] for result in found] == [{"1": 4.0}, {"1": 4.0}]
    assert [result["hooks"] for result in found] == [0, 0]
    # 4 steps: a look before and after each fetch and each forward, none in the evaluation
    assert [result["looks"] for result in found] == [16, 16]
    for result in found:
        assert result["logged"] == [4.0]
    assert found[1]["said"] == []
    assert "rank 1 takes 4.0 times as long" in found[0]["said"][0]


def test_one_process_measures_nothing():
    detector = Timed("1 step", tick=1.0)
    TinyRunner(callbacks=[detector]).train()

    assert detector.looks == 0


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([1.0, 1.0], {}),
        ([1.0, 2.0], {1: 2.0}),
        ([2.0, 2.0, 2.0, 3.0], {}),
        ([2.0, 5.0, 2.0, 6.0], {1: 2.5, 3: 3.0}),
        ([0.0, 0.0], {}),
    ],
)
def test_slow_is_what_is_far_from_the_median(seconds: list[float], slow: dict[int, float]):
    assert slow_ranks(seconds, threshold=1.5) == slow
    assert len(ratios(seconds)) == len(seconds)


def test_processes_that_take_no_time_are_as_fast_as_one_another():
    assert ratios([0.0, 0.0]) == [1.0, 1.0]


@pytest.mark.parametrize("arguments", [{"every": "1 epoch"}, {"threshold": 1.0}])
def test_arguments_are_checked(arguments: dict[str, Any]):
    with pytest.raises(CallbackError, match="SlowRankDetector"):
        SlowRankDetector(**arguments)
