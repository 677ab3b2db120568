from __future__ import annotations

import pytest
import torch
from torch import nn

from danling.callbacks import BackboneFinetuning, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner, in_child, is_equal, outcome


class Deep(TinyRunner):
    def __init__(self, *args, head_only=False, schedule=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.model = nn.Sequential()
        self.model.add_module("backbone", nn.Linear(4, 4))
        self.model.add_module("head", nn.Linear(4, 3))
        trained = self.model.head if head_only else self.model
        self.optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        if schedule is not None:
            self.scheduler = schedule(self.optimizer)


class TestContract(CallbackContract):
    changes_training = True

    runner_class = Deep

    def make(self):
        return BackboneFinetuning(1)


SCHEDULES = {
    "none": None,
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=40
    ),
    "in sequence": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 2),
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_backbone_is_frozen_and_then_has_a_rate_of_its_own(schedule, head_only):
    rates, weights = [], []

    def keep(runner):
        rates.append([group["lr"] for group in runner.optimizer.param_groups])
        weights.append(runner.model.backbone.weight.detach().clone())

    late = LambdaCallback(on_before_step=keep)
    callback = BackboneFinetuning(2, lambda epoch: 1.5, backbone_initial_ratio_lr=0.2)
    runner = Deep(
        {"max_epochs": 4},
        callbacks=[callback, late],
        head_only=head_only,
        schedule=SCHEDULES[schedule],
    )
    runner.train()

    assert all(torch.equal(weight, weights[0]) for weight in weights[:9])
    assert not torch.equal(weights[9], weights[0])
    assert [rate for _, rate in rates[8:12]] == pytest.approx([rates[7][0] * 0.2] * 4, rel=0.3)
    assert rates[12][1] == pytest.approx(rates[8][1] * 1.5)
    names = [group["name"] for group in runner.optimizer.param_groups]
    assert names == ["0", "backbone"]


@pytest.mark.parametrize("step", [6, 10, 14])
@pytest.mark.parametrize("schedule", ["lambda", "cosine"])
def test_a_killed_run_goes_on_with_the_same_groups(tmp_path, schedule, step):
    from danling.testing import Lasting

    def make(folder, kill_at=None):
        config = {"project_root": str(folder), "max_epochs": 4, "resume": "auto"}
        callbacks = [BackboneFinetuning(2, lambda epoch: 1.5), Lasting(kill_at)]
        return Deep(
            config,
            callbacks=callbacks,
            default_callbacks=True,
            head_only=True,
            schedule=SCHEDULES[schedule],
        )

    undisturbed = make(tmp_path / "whole")
    undisturbed.train()
    in_child(lambda: make(tmp_path, step).train())
    resumed = make(tmp_path)
    resumed.train()

    assert resumed.resume_report["exact"], resumed.resume_report["reasons"]
    assert is_equal(outcome(resumed), outcome(undisturbed))


def test_the_rate_never_exceeds_that_of_the_head():
    callback = BackboneFinetuning(0, lambda epoch: 100.0, backbone_initial_lr=0.01)
    Deep({"max_epochs": 2}, callbacks=[callback]).train()
    free = BackboneFinetuning(0, lambda epoch: 100.0, backbone_initial_lr=0.01, should_align=False)
    Deep({"max_epochs": 2}, callbacks=[free]).train()

    assert (callback.lr, free.lr) == (0.1, 1.0)


def test_a_second_training_has_no_third_group():
    runner = Deep({"max_epochs": 1}, callbacks=[BackboneFinetuning(0)])
    runner.train()
    runner.config.max_epochs = 2
    runner.train()

    assert len(runner.optimizer.param_groups) == 2


def test_a_module_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(CallbackError, match="did you mean 'backbone'"):
        Deep(callbacks=[BackboneFinetuning(backbone="backbon")]).train()


@pytest.mark.parametrize(
    "arguments",
    [
        {"unfreeze_backbone_at_epoch": -1},
        {"backbone_initial_ratio_lr": 0.0},
        {"backbone_initial_lr": -0.1},
    ],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(CallbackError, match="BackboneFinetuning"):
        BackboneFinetuning(**arguments)
