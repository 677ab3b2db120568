from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from danling.callbacks import LambdaCallback, LearningRateFinder
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, is_equal, outcome


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    needs_one_process = True
    changes_training = True
    syncs_every_step = True  # of its search

    def make(self):
        return LearningRateFinder(num_training_steps=20, early_stop_threshold=None)


class TestContractOfLookingOnly(CallbackContract):
    needs_one_process = True
    syncs_every_step = True  # of its search

    def make(self):
        return LearningRateFinder(
            num_training_steps=20, early_stop_threshold=None, update_attr=False
        )


def test_the_training_begins_with_what_was_suggested():
    rates: list[float] = []
    keep = LambdaCallback(
        on_before_step=lambda runner: rates.append(runner.optimizer.param_groups[0]["lr"])
    )
    finder = LearningRateFinder(1e-4, 10.0, num_training_steps=40)
    runner = TinyRunner({"max_epochs": 1}, callbacks=[finder, keep])
    runner.scheduler = torch.optim.lr_scheduler.LambdaLR(runner.optimizer, lambda step: 0.5**step)
    runner.train()

    found = finder.suggestion()
    assert found is not None
    assert 1e-4 < found < 10.0
    assert rates == pytest.approx([found, found / 2, found / 4, found / 8])


def test_the_run_is_left_as_it_was_found():
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        runners = []
        for callbacks in ([], [LearningRateFinder(num_training_steps=9, update_attr=False)]):
            runner = TinyRunner(callbacks=callbacks)
            runner.optimizer = kind(runner.model.parameters(), lr=0.1)
            runner.train()
            runners.append(runner)

        assert is_equal(outcome(runners[0]), outcome(runners[1]))


def test_the_search_ends_where_the_loss_explodes():
    finder = LearningRateFinder(1e-3, 1e6, num_training_steps=100)
    TinyRunner(callbacks=[finder]).train()

    assert 10 < len(finder.results["lr"]) < 100
    assert finder.results["loss"][-1] > 4 * min(finder.results["loss"])


@pytest.mark.parametrize("mode", ["exponential", "linear"])
def test_the_suggestion_is_that_of_lightning(mode):
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.tuner.lr_finder import _ExponentialLR, _LinearLR, _LRFinder

    draws = random.Random(0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    kind = {"exponential": _ExponentialLR, "linear": _LinearLR}[mode]
    schedule, rates = kind(optimizer, 1.0, 50), []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    finder = LearningRateFinder(1e-6, 1.0, 50, mode)
    assert [finder.rate(index) for index in range(1, 50)] == pytest.approx(rates[1:])

    for _ in range(50):
        losses = [draws.choice([draws.random(), 1.0, math.nan]) for _ in rates]
        theirs = _LRFinder(mode, 1e-6, 1.0, 50)
        theirs.results = finder.results = {"lr": rates, "loss": losses}

        assert finder.suggestion() == theirs.suggestion()


def test_too_few_losses_suggest_nothing(caplog):
    runner = TinyRunner(callbacks=[LearningRateFinder(num_training_steps=5)])
    runner.train()

    assert "too few losses" in caplog.text
    assert runner.optimizer.param_groups[0]["lr"] == 0.1


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="0 < min_lr < max_lr"):
        LearningRateFinder(1.0, 0.1)
    with pytest.raises(CallbackError, match="at least 3"):
        LearningRateFinder(num_training_steps=2)
    with pytest.raises(CallbackError, match="did you mean 'linear'"):
        LearningRateFinder(mode=wrong("lin"))
