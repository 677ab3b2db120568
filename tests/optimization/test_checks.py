"""Optimizers and schedulers that cannot be trained with are refused, with the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import TensorDataset

import danling as dl
from danling.errors import ConfigError

DATA = TensorDataset(torch.arange(16.0).reshape(8, 2), torch.zeros(8, 1))


def make(**parts: Any) -> dl.AccelerateRunner:
    settings = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}}
    return dl.AccelerateRunner(settings, default_callbacks=False, **parts)


class WithArgument:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, closure: int) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class HalfAState:
    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


class NeedsMore(SGD):
    def step(self, closure: Any, loss: Any) -> Any:
        return closure()


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1)


WRONG_PARTS: list[tuple[Any, Any, str]] = [
    (lambda m: SGD, None, r"the optimizer is the class SGD: hand over an object, SGD\(\.\.\.\)"),
    (lambda m: {"a": Adam}, None, "the optimizer 'a' is the class Adam"),
    (lambda m: [sgd(m), sgd(m)], None, r"has a parameter of shape \(1, 2\) twice, in number 0 and"),
    (lambda m: [], None, "the list of optimizers is empty"),
    (lambda m: [sgd(m), "sgd"], None, "the optimizer '1' is of type str, which has no"),
    (lambda m: [sgd(m), LBFGS([m.bias])], None, "LBFGS in the list of optimizers needs a closure"),
    (lambda m: (sgd(m),), None, "the optimizer is a tuple: hand over several by name"),
    (lambda m: m, None, r"is of type Linear, which has no step\(\) and no param_groups"),
    (lambda m: NeedsMore(m.parameters(), 0.1), None, "NeedsMore, needs more than a closure"),
    (sgd, lambda o: StepLR, r"the scheduler is the class StepLR: hand over an object"),
    (sgd, lambda o: (StepLR(o, 1), StepLR(o, 1)), "a scheduler in a tuple has its interval after"),
    (sgd, lambda o: (StepLR(o, 1), "epochs"), "interval of a schedule is 'epochs': did you mean"),
    (sgd, lambda o: {"name": "cosine", "frequency": 0}, "the frequency of a schedule is 0"),
    (sgd, lambda o: [StepLR(o, 1), StepLR], "the scheduler '1' is the class StepLR"),
    (sgd, lambda o: object(), "is of type object, which has no step"),
    (sgd, lambda o: HalfAState(), "HalfAState, has one of state_dict and load_state_dict, not"),
    (sgd, lambda o: WithArgument(o), r"WithArgument, needs an argument 'closure' for its step\(\)"),
    (sgd, lambda o: "cosin", "there is no schedule 'cosin': did you mean 'cosine'"),
    (sgd, lambda o: StepLR(sgd(nn.Linear(2, 1)), 1), r"made for another optimizer than the one of"),
    (
        sgd,
        lambda o: ReduceLROnPlateau(sgd(nn.Linear(2, 1))),
        "ReduceLROnPlateau, was made for another",
    ),
]


@pytest.mark.parametrize(("optimizer", "scheduler", "message"), WRONG_PARTS)
def test_what_cannot_be_trained_with_is_refused_by_the_constructor(
    optimizer: Any, scheduler: Any, message: str
) -> None:
    model = nn.Linear(2, 1)
    made = optimizer(model)
    schedule = None if scheduler is None else scheduler(made)

    with pytest.raises(ConfigError, match=message):
        make(model=model, optimizer=made, scheduler=schedule)


@pytest.mark.parametrize(("optimizer", "scheduler", "message"), WRONG_PARTS)
def test_what_a_subclass_builds_is_refused_before_it_trains(
    optimizer: Any, scheduler: Any, message: str
) -> None:
    runner = make(model=nn.Linear(2, 1), criterion=nn.MSELoss(), datasets={"train": DATA})
    runner.optimizer = optimizer(runner.model)
    runner.scheduler = None if scheduler is None else scheduler(runner.optimizer)

    with pytest.raises(ConfigError, match=message):
        runner.train()

    assert runner.global_step == 0


def test_a_scheduler_of_one_optimizer_under_the_name_of_another_is_refused() -> None:
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizers = {"a": sgd(first), "b": sgd(second)}

    with pytest.raises(ConfigError, match="made for another optimizer than the one 'a'"):
        make(optimizer=optimizers, scheduler={"a": StepLR(optimizers["b"], 1)})


@pytest.mark.parametrize("keeps", [True, False])
def test_a_scheduler_of_an_optimizer_inside_another_moves_it_or_is_refused(keeps: bool) -> None:
    class Wrapping(torch.optim.Optimizer):
        def __init__(self, inner: SGD) -> None:
            self.inner = inner
            super().__init__(inner.param_groups, inner.defaults)
            self.param_groups = inner.param_groups

        def step(self, closure: Any = None) -> None:
            self.inner.step()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state)
            if keeps:
                self.inner.param_groups = self.param_groups

    model = nn.Linear(2, 1)
    inner = sgd(model)
    optimizer = Wrapping(inner)
    runner = make(
        model=model,
        criterion=nn.MSELoss(),
        optimizer=optimizer,
        scheduler=StepLR(inner, 1, gamma=0.5),
        datasets={"train": DATA},
    )
    if not keeps:  # Accelerate has it load its own state, and then nothing is shared any more
        with pytest.raises(ConfigError, match="StepLR, was made for another optimizer"):
            runner.train()
        return
    runner.train()

    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**8
