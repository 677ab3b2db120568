from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from danling.callbacks import LambdaCallback, ModelPruning
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal
from tests.distributed.processes import leave, results, succeed
from tests.distributed.runners import Regression


class TestContract(CallbackContract):
    changes_training = True

    def make(self):
        return ModelPruning(amount=0.3)


class TestContractOfTheLottery(CallbackContract):
    changes_training = True

    def make(self):
        return ModelPruning("random_unstructured", 0.3, use_lottery_ticket_hypothesis=True)


class Deep(TinyRunner):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)


def trained(pruning: ModelPruning, **config: Any) -> Deep:
    runner = Deep({"max_epochs": 3, **config}, callbacks=[pruning])
    runner.train()
    return runner


def zeros(tensor: torch.Tensor) -> int:
    return int((tensor == 0).sum())


@pytest.mark.parametrize("max_norm", [None, 0.3])
@pytest.mark.parametrize("globally", [True, False])
def test_the_training_is_that_of_torch_s_own_pruning(globally: bool, max_norm: float | None):
    """Torch keeps `weight_orig` and a mask, and multiplies in each forward."""

    def prune_by_torch(runner: Any) -> None:
        if runner.epoch == 0:
            return
        layers = [(runner.model[0], "weight"), (runner.model[2], "weight")]
        if globally:
            prune.global_unstructured(layers, prune.L1Unstructured, amount=0.4)
        else:
            for layer, name in layers:
                prune.l1_unstructured(layer, name, amount=0.4)

    theirs = Deep(
        {"max_epochs": 3, "max_grad_norm": max_norm},
        callbacks=[LambdaCallback(on_epoch_start=prune_by_torch)],
    )
    theirs.train()
    pruning = ModelPruning("l1_unstructured", 0.4, use_global_unstructured=globally)
    ours = trained(pruning, max_grad_norm=max_norm)

    for index in (0, 2):
        assert torch.equal(ours.model[index].weight == 0, theirs.model[index].weight_mask == 0)
        assert torch.allclose(ours.model[index].weight, theirs.model[index].weight, atol=1e-6)
        assert torch.allclose(ours.model[index].bias, theirs.model[index].bias, atol=1e-6)
    assert pruning.sparsity == pytest.approx(1 - 0.6**2, abs=0.03)


def test_a_structured_rule_removes_whole_rows():
    pruning = ModelPruning("ln_structured", 0.25, parameters=("0",), dim=0, until="1 epoch")
    weight = trained(pruning).model[0].weight

    assert zeros(weight.abs().sum(1)) == 2
    assert zeros(weight) == 2 * 4


def test_a_number_and_a_function_are_amounts_too():
    by_number = trained(ModelPruning(amount=5, until="1 epoch"))
    asked: list[int] = []

    def amount(epoch: int) -> float:
        asked.append(epoch)
        return 0.0 if epoch == 1 else 0.5

    by_function = trained(ModelPruning(amount=amount))

    assert zeros(by_number.model[0].weight) + zeros(by_number.model[2].weight) == 5
    assert asked == [1, 2]
    assert zeros(by_function.model[0].weight) + zeros(by_function.model[2].weight) == 28


def test_periods_in_steps_prune_within_an_epoch():
    pruned: list[int] = []

    class Watched(ModelPruning):
        def prune(self, runner):
            super().prune(runner)
            pruned.append(runner.global_step)

    trained(Watched(amount=0.1, every="3 steps", start="4 steps", until="9 steps"))

    assert pruned == [6, 9]


def test_the_lottery_ticket_begins_again_with_the_initial_weights():
    initial = Deep({"max_epochs": 3}).model[0].weight.detach().clone()
    seen: list[torch.Tensor] = []
    look = LambdaCallback(
        on_epoch_start=lambda runner: seen.append(runner.model[0].weight.detach().clone())
    )
    runner = Deep(
        {"max_epochs": 3},
        callbacks=[ModelPruning(amount=0.4, use_lottery_ticket_hypothesis=True), look],
    )
    runner.train()

    assert torch.equal(seen[1][seen[1] != 0], initial[seen[1] != 0])
    assert not torch.equal(runner.model[0].weight[seen[1] != 0], seen[1][seen[1] != 0])


def test_the_checkpoint_s_model_is_pruned_and_loads_without_it(tmp_path):
    runner = Deep(
        {"project_root": str(tmp_path)}, callbacks=[ModelPruning()], default_callbacks=True
    )
    runner.train()

    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model.load_state_dict(runner.checkpoints.load()[0]["model"])
    assert is_equal(model.state_dict(), runner.model.state_dict())
    assert zeros(model[0].weight) + zeros(model[2].weight) == 28


def prune_at_random(folder: Path) -> None:
    pruning = ModelPruning("random_unstructured", 0.3)
    runner = Regression(folder, {"max_epochs": 3}, callbacks=[pruning])
    runner.train()
    leave(folder, [runner.model.module[0].weight.tolist(), pruning.sparsity])


@pytest.mark.distributed
def test_two_processes_prune_the_same_weights(tmp_path):
    succeed(2, prune_at_random, tmp_path, folder=tmp_path)

    one, other = results(tmp_path, 2)
    assert one == other
    assert one[1] == pytest.approx(1 - 0.7**2, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_fn": "l1"}, "l1_unstructured"),
        ({"amount": 1.5}, "a share from 0.0 to 1.0"),
        ({"amount": -1}, "a share from 0.0 to 1.0"),
        ({"every": "1 h"}, "in steps or epochs"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str):
    with pytest.raises(CallbackError, match=message):
        ModelPruning(**arguments)


def test_a_pattern_that_names_nothing_is_an_error():
    with pytest.raises(CallbackError, match=r"did you mean 'weight'"):
        TinyRunner(callbacks=[ModelPruning(parameters=("wieght",))]).train()
