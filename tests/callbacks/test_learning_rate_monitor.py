from __future__ import annotations

from typing import Any

import torch

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.learning_rate_monitor import LearningRateMonitor
from danling.testing import CallbackContract


def logged(make_runner, callback, **arguments) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    keep = LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics)))
    make_runner([callback, keep], max_epochs=1, **arguments).train()
    return [row for row in rows if "train/loss" in row]


def test_momentum_and_weight_decay_are_logged_beside_the_learning_rate(make_runner):
    rows = logged(make_runner, LearningRateMonitor())

    assert [row["optim/momentum/0"] for row in rows] == [0.9, 0.9, 0.9]
    assert [row["optim/weight_decay/0"] for row in rows] == [0.01, 0.01, 0.01]


def test_the_momentum_of_adam_is_its_first_beta(make_runner):
    rows = logged(make_runner, LearningRateMonitor(weight_decay=False), optimizer="adamw")

    assert rows[0]["optim/momentum/0"] == 0.9
    assert "optim/weight_decay/0" not in rows[0]


def test_groups_have_their_names_and_optimizers_too(make_runner):
    rows: list[dict[str, float]] = []
    runner = make_runner(
        [
            LearningRateMonitor(),
            LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics))),
        ],
        max_epochs=1,
    )
    first, *others = runner.model.parameters()
    groups = [
        {"params": [first], "name": "weights", "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    runner.optimizer = {"generator": torch.optim.SGD(groups, lr=0.1, momentum=0.5)}

    runner.train()

    ours = {tag: rows[0][tag] for tag in rows[0] if "momentum" in tag or "decay" in tag}
    assert ours == {
        "optim/momentum/generator/weights": 0.5,
        "optim/weight_decay/generator/weights": 0.1,
        "optim/momentum/generator/1": 0.5,
        "optim/weight_decay/generator/1": 0.0,
    }
    assert "optim/lr/generator/weights" in rows[0]


def test_groups_of_one_name_have_a_value_each():
    groups: list[dict[str, Any]] = [
        {"name": "a", "momentum": 0.1},
        {"name": "a", "momentum": 0.2},
        {"momentum": 0.3},
    ]

    values = dict(LearningRateMonitor()._values(groups))

    assert values == {"momentum/a-0": 0.1, "momentum/a-1": 0.2, "momentum/2": 0.3}


class TestContract(CallbackContract):
    def make(self):
        return LearningRateMonitor()
