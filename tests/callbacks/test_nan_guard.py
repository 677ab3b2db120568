from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from danling.callbacks import LambdaCallback, ModelCheckpoint, NaNGuard
from danling.errors import CallbackError, MetricError
from danling.testing import CallbackContract, TinyRunner, is_equal


def wrong(value: Any) -> Any:
    """A value that a type checker would refuse."""
    return value


class TestContract(CallbackContract):
    def make(self):
        return NaNGuard()


class TestContractOfSkipping(CallbackContract):
    def make(self):
        return NaNGuard("skip")


class TestContractOfRestoring(CallbackContract):
    default_callbacks = True

    def make(self):
        return NaNGuard("restore")


def poison(*steps: int, value: float = math.nan) -> LambdaCallback:
    """Gradients that are not finite at the given global steps, before anybody sees them."""

    def change(runner):
        if runner.global_step + 1 in steps:
            runner.model.weight.grad[0, 0] = value

    callback = LambdaCallback(name="poison", on_before_step=change)
    callback.priority = 0
    return callback


class Adam(TinyRunner):
    """With an optimizer whose state a bad gradient ruins."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_error_names_the_step(value: float):
    runner = TinyRunner(callbacks=[poison(3, value=value), NaNGuard()])

    with pytest.raises(MetricError, match="the gradients of global step 3 are not finite"):
        runner.train()
    assert runner.global_step == 3


def test_a_loss_that_is_not_finite_shows_in_the_gradients():
    class Diverging(TinyRunner):
        def train_step(self, batch):
            loss = super().train_step(batch)["loss"]
            return loss * math.nan if self.global_step == 1 else loss

    with pytest.raises(MetricError, match="global step 2"):
        Diverging(callbacks=[NaNGuard()]).train()


def test_a_stop_has_the_reason():
    runner = TinyRunner(callbacks=[poison(3), NaNGuard("stop")])
    runner.train()

    assert runner.global_step == 3
    assert runner.stop_reason == "nan_guard: the gradients of global step 3 are not finite"


@pytest.mark.parametrize("steps", [(1,), (3,), (3, 4)])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(steps: tuple[int, ...]):
    guard, states = NaNGuard("skip"), {}

    def keep(runner):
        model, optimizer = runner.model.state_dict(), runner.optimizer.state_dict()["state"]
        states[runner.global_step] = {
            "model": {key: value.clone() for key, value in model.items()},
            "optimizer": {k: {n: t.clone() for n, t in v.items()} for k, v in optimizer.items()},
        }

    runner = Adam(
        callbacks=[
            poison(*steps),
            guard,
            LambdaCallback(name="keep", on_batch_end=lambda runner, batch, output: keep(runner)),
        ]
    )
    runner.train()

    for step in steps:
        if step > 1:
            assert is_equal(states[step], states[step - 1])
    assert guard.caught == len(steps)
    assert runner.global_step == 8
    assert torch.isfinite(runner.model.weight).all()


def test_the_optimizer_s_own_count_is_put_back_too():
    skipped = Adam({"max_steps": 3}, callbacks=[poison(1), NaNGuard("skip")])
    skipped.train()

    assert [float(state["step"]) for state in skipped.optimizer.state.values()] == [2.0, 2.0]


def test_too_many_are_an_error():
    guard = NaNGuard("skip", max_times=2)
    runner = TinyRunner(callbacks=[poison(2, 3, 4), guard])

    with pytest.raises(MetricError, match="for the 3th time"):
        runner.train()


def test_the_last_good_checkpoint_comes_back(tmp_path):
    def make(*callbacks):
        config = {"project_root": str(tmp_path), "max_epochs": 2}
        checkpoint = ModelCheckpoint(every="2 steps")
        return Adam(config, callbacks=[checkpoint, *callbacks], default_callbacks=True)

    kept: dict[int, torch.Tensor] = {}

    def keep(runner, batch, output):
        kept[runner.global_step] = runner.model.weight.detach().clone()

    guard = NaNGuard("restore")
    runner = make(poison(6), guard, LambdaCallback(on_batch_end=keep))
    runner.train()

    assert torch.equal(kept[6], kept[4])
    assert not torch.equal(kept[7], kept[6])
    assert (guard.caught, runner.global_step) == (1, 8)
    assert torch.isfinite(runner.model.weight).all()


def test_a_checkpoint_with_weights_that_are_not_finite_is_passed_over(tmp_path):
    kept: dict[int, torch.Tensor] = {}

    def ruin(runner, batch, output):
        kept[runner.global_step] = runner.model.weight.detach().clone()
        if runner.global_step == 5:  # as by something that no guard sees
            runner.model.weight.data.fill_(math.nan)

    checkpoint = ModelCheckpoint(every="1 step")
    runner = TinyRunner(
        {"project_root": str(tmp_path), "max_steps": 6},
        callbacks=[checkpoint, NaNGuard("restore"), LambdaCallback(on_batch_end=ruin)],
        default_callbacks=True,
    )
    runner.train()

    assert torch.equal(kept[6], kept[4])


def test_without_a_good_checkpoint_there_is_an_error_that_says_what_to_do(tmp_path):
    runner = TinyRunner(
        {"project_root": str(tmp_path)},
        callbacks=[poison(1), NaNGuard("restore")],
        default_callbacks=True,
    )

    with pytest.raises(MetricError, match="save more often"):
        runner.train()


def test_a_run_without_a_directory_has_nothing_to_restore():
    with pytest.raises(CallbackError, match="no directory"):
        TinyRunner(callbacks=[NaNGuard("restore")]).train()


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="did you mean 'raise'"):
        NaNGuard(wrong("raises"))
    with pytest.raises(CallbackError, match="max_times"):
        NaNGuard(max_times=0)
