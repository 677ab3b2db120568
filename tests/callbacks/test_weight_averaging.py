"""The averages of weights: those of torch, evaluated, saved and gone on from."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    SWALR,
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
)

from danling.callbacks import (
    EMAWeightAveraging,
    LambdaCallback,
    StochasticWeightAveraging,
    WeightAveraging,
)
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    def make(self):
        return WeightAveraging("3 steps")


class TestContractOfEMA(CallbackContract):
    def make(self):
        return EMAWeightAveraging(decay=0.9, start="2 steps")


class TestContractOfSWA(CallbackContract):
    changes_training = True

    def make(self):
        return StochasticWeightAveraging(0.3, swa_epoch_start=1, annealing_epochs=0)


class Normalised(TinyRunner):
    """With buffers, and two names for one weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        last.weight = first.weight
        self.model = nn.Sequential(first, nn.BatchNorm1d(4), nn.Tanh(), last)
        count = self.model[1].num_batches_tracked
        self.model[1].num_batches_tracked = count.float()  # torch cannot average an integer
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)


def followed(average: AveragedModel, model: nn.Module, is_due) -> LambdaCallback:
    """Has torch's own class follow the weights."""

    def follow(runner):
        if is_due(runner):
            average.update_parameters(model)

    return LambdaCallback(name="follow", on_step=follow)


def saved(runner: TinyRunner) -> dict[str, torch.Tensor]:
    return runner.state_dict()["model"]


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize(
    ("make", "average_of", "is_due"),
    [
        (
            lambda **arguments: EMAWeightAveraging(0.7, **arguments),
            get_ema_multi_avg_fn(0.7),
            lambda runner: True,
        ),
        (
            lambda **arguments: EMAWeightAveraging(0.7, "2 steps", start="3 steps", **arguments),
            get_ema_multi_avg_fn(0.7),
            lambda runner: runner.global_step >= 3 and runner.global_step % 2 == 0,
        ),
        (
            lambda **arguments: WeightAveraging("1 epoch", **arguments),
            get_swa_multi_avg_fn(),
            lambda runner: runner.global_step % 4 == 0,
        ),
    ],
)
def test_the_average_is_that_of_torch(make, average_of, is_due, use_buffers):
    callback = make(use_buffers=use_buffers)
    runner = Normalised({"evaluate_every": None}, callbacks=[callback])
    theirs = AveragedModel(runner.model, multi_avg_fn=average_of, use_buffers=use_buffers)
    runner.callbacks.append(followed(theirs, runner.model, is_due))
    runner.train()

    assert is_equal(saved(runner), theirs.module.state_dict())
    assert callback.updates == int(theirs.n_averaged)
    assert not torch.equal(saved(runner)["0.weight"], runner.model[0].weight)


def test_an_average_of_another_kind_is_a_class_of_three_lines():
    class AtEvenSteps(WeightAveraging):
        def should_update(self, runner):
            return runner.global_step % 2 == 0

    callback = AtEvenSteps()
    TinyRunner(callbacks=[callback]).train()

    assert callback.updates == 4


def test_what_is_evaluated_and_predicted_is_the_average():
    callback, seen = EMAWeightAveraging(0.5), []

    def look(runner, *_):
        seen.append(runner.model.weight.detach().clone())

    looking = LambdaCallback(on_evaluate_batch_end=look, on_predict_batch_end=look)
    runner = TinyRunner({"max_epochs": 1}, callbacks=[callback, looking])
    runner.train()
    trained = runner.model.weight.detach().clone()
    runner.predict("test")

    average = saved(runner)["weight"]
    assert len(seen) == 8
    assert all(torch.equal(weight, average) for weight in seen)
    assert torch.equal(runner.model.weight, trained)
    assert not torch.equal(trained, average)


def test_two_that_decide_what_is_evaluated_are_refused():
    """Their exchanges would not come undone in the right order."""
    runner = TinyRunner(callbacks=[WeightAveraging(), EMAWeightAveraging(0.5)])
    before = runner.model.weight.detach().clone()

    with pytest.raises(
        CallbackError, match="'weight_averaging' and 'ema_weight_averaging' each put weights"
    ):
        runner.train()
    assert torch.equal(runner.model.weight, before)


def test_an_error_within_an_evaluation_gives_the_weights_back():
    class Breaking(TinyRunner):
        def evaluate_step(self, batch):
            raise ZeroDivisionError

    weights = []
    keep = LambdaCallback(
        on_batch_end=lambda runner, *_: weights.append(runner.model.weight.detach().clone())
    )
    runner = Breaking(callbacks=[EMAWeightAveraging(0.5), keep])
    with pytest.raises(ZeroDivisionError):
        runner.train()

    assert torch.equal(runner.model.weight, weights[-1])


def random_case(seed: int):
    draws = random.Random(seed)
    kind = draws.choice(["ema", "swa", "mean", "plain"])
    period = draws.choice(["1 step", "3 steps", "1 epoch"])
    config = {
        "seed": seed,
        "max_epochs": draws.randint(1, 4),
        "evaluate_every": draws.choice(["1 epoch", "3 steps"]),
        "monitor": draws.choice(["val/loss", "val/accuracy"]),
    }
    config["monitor_mode"] = "min" if config["monitor"] == "val/loss" else "max"
    callbacks = {
        "ema": lambda: [EMAWeightAveraging(draws.uniform(0.1, 0.9), period)],
        "swa": lambda: [StochasticWeightAveraging(0.2, swa_epoch_start=1, annealing_epochs=1)],
        "mean": lambda: [WeightAveraging(period, start=draws.choice([None, "2 steps"]))],
        "plain": list,
    }
    return config, callbacks[kind]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_score_comes_back(tmp_path, seed):
    config, make = random_case(seed)
    runner = Normalised(
        config | {"project_root": str(tmp_path)}, callbacks=make(), default_callbacks=True
    )
    runner.train()
    best = runner.checkpoint_dir / "best.pth"

    name = runner.monitor.removeprefix("val/")
    for callbacks in ((), make()):  # for use, and for going on
        loaded = Normalised(config, callbacks=callbacks)
        loaded.load_checkpoint(best)
        assert loaded.evaluate("val")[name] == pytest.approx(runner.best_score, abs=1e-7)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_the_learning_rate_is_that_of_torch(strategy):
    rates, callback = [], StochasticWeightAveraging(0.5, 2, 3, strategy)
    keep = LambdaCallback(
        on_step=lambda runner: rates.append(runner.optimizer.param_groups[0]["lr"])
    )
    keep.priority = 90
    TinyRunner({"max_epochs": 7, "evaluate_every": None}, callbacks=[callback, keep]).train()

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    schedule, expected = None, []
    for epoch in range(7):
        if epoch == 2:
            schedule = SWALR(optimizer, 0.5, anneal_epochs=3, anneal_strategy=strategy)
        expected += [optimizer.param_groups[0]["lr"]] * 4
        optimizer.step()
        if schedule is not None:
            schedule.step()
    assert rates == pytest.approx(expected)


def test_swa_is_the_mean_over_the_last_epochs():
    callback, ends = StochasticWeightAveraging(0.1, swa_epoch_start=0.5), []

    def keep(runner):
        ends.append(runner.model.weight.detach().clone())

    runner = TinyRunner({"max_epochs": 6}, callbacks=[callback, LambdaCallback(on_epoch_end=keep)])
    runner.train()

    assert callback.updates == 3
    assert torch.allclose(saved(runner)["weight"], torch.stack(ends[3:]).mean(0))


def test_before_the_first_update_the_weights_are_saved():
    runner = TinyRunner({"max_steps": 2}, callbacks=[EMAWeightAveraging(start="9 steps")])
    runner.train()

    assert torch.equal(saved(runner)["weight"], runner.model.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMAWeightAveraging(1.0), "between 0 and 1"),
        (lambda: EMAWeightAveraging(every="3 min"), "in steps or epochs"),
        (lambda: WeightAveraging(start="0.5 run"), "in steps or epochs"),
        (lambda: StochasticWeightAveraging(0.0), "must be positive"),
        (lambda: StochasticWeightAveraging(0.1, -1), "must not be negative"),
        (lambda: StochasticWeightAveraging(0.1, annealing_strategy=wrong("cosine")), "mean 'cos'"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(CallbackError, match=message):
        make()


def test_a_rate_for_each_group_or_one_for_all():
    with pytest.raises(CallbackError, match="there are 1 parameter groups"):
        TinyRunner(callbacks=[StochasticWeightAveraging([0.1, 0.2])]).train()


def test_a_share_needs_a_number_of_epochs():
    runner = TinyRunner(
        {"max_epochs": None, "max_steps": 3}, callbacks=[StochasticWeightAveraging(0.1)]
    )
    with pytest.raises(CallbackError, match="max_epochs"):
        runner.train()
