"""The comparison of a checkpoint with a runner; `test_capture` shows that nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danling.errors import CheckpointError
from danling.runner.resume import (
    check_complete,
    config_changes,
    kinds,
    obstacles,
    surroundings,
)
from tests.support.resume_runs import make_runner

RUN = {"world_size": 1, "accum_steps": 1}


def test_a_checkpoint_without_one_of_its_parts_is_named():
    parts = ["model", "optimizer", "scheduler", "scaler", "config", "results", "callbacks", "data"]
    whole: dict[str, Any] = dict.fromkeys([*parts, "rng", "run"])

    check_complete(whole, Path("latest.pth"))
    for part in whole:
        rest = {key: value for key, value in whole.items() if key != part}
        with pytest.raises(CheckpointError, match=f"latest.pth is not complete: {part} is not"):
            check_complete(rest, Path("latest.pth"))


def test_obstacles_have_the_old_and_the_new_value():
    assert obstacles(RUN, RUN) == []
    assert obstacles({"world_size": 4, "accum_steps": 2}, RUN) == [
        "world_size 4 -> 1",
        "accum_steps 2 -> 1",
    ]
    assert "in the middle of a step" in obstacles(RUN | {"crash": "ValueError: x"}, RUN)[0]


def test_the_parts_of_a_runner_are_known_by_their_classes():
    runner = make_runner()
    runner.prepare()

    assert kinds(runner.optimization) == {"optimizer": {"": "SGD"}, "scheduler": {}}
    assert surroundings(runner.accelerator)["mixed_precision"] == "no"


def test_nested_values_of_the_configuration_are_compared_one_by_one():
    runner = make_runner(optim={"lr": 0.1, "betas": [0.9, 0.99]})
    saved = runner.config.resolved() | {"optim": {"lr": 0.2, "betas": [0.9, 0.99]}, "epoch": 3}

    assert config_changes(runner.config, saved) == ["config: optim.lr was 0.2, now it is 0.1"]
