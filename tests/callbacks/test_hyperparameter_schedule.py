from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import HyperparameterSchedule, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    changes_training = True

    def make(self):
        return HyperparameterSchedule("weight_decay", lambda step: 0.1 * step)


class Weighted(nn.Module):
    beta: torch.Tensor

    def __init__(self):
        super().__init__()
        self.alpha = 1.0
        self.register_buffer("beta", torch.tensor(1.0))

    def forward(self, output, target):
        return self.alpha * self.beta * nn.functional.cross_entropy(output, target)


def followed(look, *callbacks, **config) -> list[float]:
    seen: list[float] = []
    keep = LambdaCallback(name="keep", on_before_step=lambda runner: seen.append(look(runner)))
    runner = TinyRunner(config, callbacks=[*callbacks, keep])
    runner.criterion = Weighted()
    runner.train()
    return seen


def test_a_key_of_the_optimizer_follows_a_function_of_the_step():
    schedule = HyperparameterSchedule("momentum", lambda step: step / 10)
    seen = followed(lambda runner: runner.optimizer.param_groups[0]["momentum"], schedule)

    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_points_hold_from_there_on_by_epoch():
    schedule = HyperparameterSchedule("weight_decay", {0: 0.0, 1: 0.5}, interval="epoch")
    seen = followed(lambda runner: runner.optimizer.param_groups[0]["weight_decay"], schedule)

    assert seen == [0.0] * 4 + [0.5] * 4


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_an_attribute_of_the_criterion_is_set_before_the_forward(name):
    losses: list[float] = []
    keep = LambdaCallback(
        name="losses",
        on_batch_end=lambda runner, batch, output: losses.append(output["loss"].item()),
    )
    schedule = HyperparameterSchedule(f"criterion.{name}", {0: 1.0, 2: 0.0})
    seen = followed(lambda runner: float(getattr(runner.criterion, name)), schedule, keep)

    assert seen == [1.0, 1.0] + [0.0] * 6
    assert losses[1] > 0
    assert losses[2:] == [0.0] * 6


def test_the_value_that_a_step_had_is_logged():
    rows: list[dict[str, float]] = []
    log = LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics)))
    schedule = HyperparameterSchedule("momentum", lambda step: step / 10)
    TinyRunner({"log_interval": 1, "evaluate_every": None}, callbacks=[schedule, log]).train()

    logged = [row["optim/momentum"] for row in rows if "optim/momentum" in row]
    assert logged == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_several_have_names_of_their_own():
    names = {HyperparameterSchedule(key, {0: 0.1}).name for key in ("momentum", "weight_decay")}

    assert len(names) == 2


def test_a_parameter_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(CallbackError, match="did you mean 'momentum'"):
        followed(lambda runner: 0.0, HyperparameterSchedule("momentun", {0: 0.1}))


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="no value for 0"):
        HyperparameterSchedule("momentum", {5: 0.1})
    with pytest.raises(CallbackError, match="a function, or a mapping"):
        HyperparameterSchedule("momentum", wrong(0.9))
    with pytest.raises(CallbackError, match="did you mean 'epoch'"):
        HyperparameterSchedule("momentum", {0: 0.9}, interval=wrong("epochs"))
