from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from danling.errors import RunError
from danling.optimization.optimization import Optimization, accelerate_adds_nothing
from tests.support.tensors import are_identical


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def single(model, *, scheduler=None, **options) -> Optimization:
    optimizer = sgd(model)
    schedulers = {} if scheduler is None else {"": scheduler(optimizer)}
    return Optimization(Accelerator(cpu=True), {"": optimizer}, schedulers, **options)


def take_step(optimization: Optimization, loss, rescale: float = 1.0) -> None:
    optimization.backward(loss, "")
    optimization.open("", rescale)
    optimization.step()
    optimization.zero_grad()


def test_one_process_in_full_precision_needs_nothing_of_accelerate():
    assert accelerate_adds_nothing(Accelerator(cpu=True))


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.1}, {"max_value": 0.01}])
@pytest.mark.parametrize("scheduler", [None, lambda o: StepLR(o, 2, gamma=0.5)])
def test_both_ways_of_a_step_give_the_same_weights(options, scheduler):
    found = []
    for direct in (True, False):
        model = layer()
        optimization = single(model, scheduler=scheduler, **options)
        optimization.direct = direct
        prepared = optimization.prepare(model)
        for step in range(10):
            take_step(optimization, prepared(torch.full((4, 3), float(step))).pow(2).mean())
        found.append(copy.deepcopy(model.state_dict()))

    assert are_identical(found[0].values(), found[1].values())


def test_gradients_are_rescaled_before_they_are_seen():
    model = layer()
    optimization = single(model)
    optimization.backward(model(torch.ones(1, 3)).sum(), "")
    before = gradients(model)[0].clone()

    optimization.open("", rescale=1.5)

    assert torch.equal(gradients(model)[0], before * 1.5)


def test_the_norm_is_computed_once_and_is_that_before_clipping():
    model = layer()
    optimization = single(model, max_norm=1e-3)
    optimization.backward(model(torch.ones(1, 3)).sum(), "")
    optimization.open("")
    expected = nn.utils.get_total_norm(gradients(model))

    assert optimization.used_norm is None
    norm = optimization.grad_norm
    assert optimization.grad_norm is norm
    optimization.step()

    assert torch.equal(norm, expected)
    assert optimization.grad_norm is norm
    assert optimization.used_norm is norm
    clipped = nn.utils.get_total_norm(gradients(model))
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_parameters_without_gradient_have_no_part_in_the_norm():
    model = layer()
    model.bias.requires_grad_(False)
    optimization = single(model, max_norm=1.0)

    take_step(optimization, model(torch.ones(1, 3)).sum())
    optimization.open("")

    assert optimization.grad_norm == 0.0


def test_outside_of_a_step_there_is_no_norm():
    model = layer()
    optimization = single(model)

    with pytest.raises(RunError, match="grad_norm is of a step: ask for it in on_before_step or"):
        _ = optimization.grad_norm
    take_step(optimization, model(torch.ones(1, 3)).sum())
    with pytest.raises(RunError, match="grad_norm is of a step"):
        _ = optimization.grad_norm


def test_schedules_move_at_their_interval():
    rates = {}
    for interval in ("step", "epoch"):
        model = layer()
        optimization = single(model, scheduler=lambda o: StepLR(o, 1, 0.5), interval=interval)
        for _ in range(3):
            take_step(optimization, model(torch.ones(1, 3)).sum())
        optimization.end_epoch()
        optimization.end_evaluation(1.0)
        rates[interval] = optimization.learning_rates()

    assert rates == {"step": {"optim/lr/0": 0.0125}, "epoch": {"optim/lr/0": 0.05}}


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_that_watches_a_value_moves_with_evaluations_alone(interval):
    model = layer()
    plateau = lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0)  # noqa: E731
    optimization = single(model, scheduler=plateau, interval=interval)

    take_step(optimization, model(torch.ones(1, 3)).sum())
    optimization.end_epoch()
    for score in (1.0, 2.0, 3.0):
        optimization.end_evaluation(score)

    assert optimization.learning_rates() == {"optim/lr/0": 0.025}


def several(direct: bool = True) -> tuple[nn.ModuleDict, Optimization]:
    model = nn.ModuleDict({"a": layer(), "b": layer(1)})
    optimizers = {name: sgd(part) for name, part in model.items()}
    optimization = Optimization(Accelerator(cpu=True), optimizers, {})
    optimization.direct = direct
    return model, optimization


@pytest.mark.parametrize("direct", [True, False])
def test_a_loss_reaches_the_parameters_of_its_optimizer_alone(direct: bool):
    model, optimization = several(direct)
    loss = model["a"](torch.ones(1, 3)).sum() + model["b"](torch.ones(1, 3)).sum()

    optimization.backward(loss, "b")

    assert model["a"].weight.grad is None
    assert model["b"].weight.grad is not None


def test_frozen_parameters_are_passed_over():
    model, optimization = several()
    model["a"].bias.requires_grad_(False)

    optimization.backward(model["a"](torch.ones(1, 3)).sum(), "a")

    assert model["a"].bias.grad is None
    assert model["a"].weight.grad is not None


@pytest.mark.parametrize("direct", [True, False])
def test_only_the_stepped_optimizer_forgets_its_gradients(direct: bool):
    model, optimization = several(direct)
    for name in "ab":
        optimization.backward(model[name](torch.ones(1, 3)).sum(), name)
    optimization.open("a")
    optimization.step()

    optimization.zero_grad()
    kept = model["b"].weight.grad
    optimization.discard()

    assert model["a"].weight.grad is None
    assert kept is not None
    assert model["b"].weight.grad is None


def test_a_gradient_scaler_steps_and_skips_as_it_does_by_hand():
    overflowing = {3, 4}  # of ten steps
    inputs = [torch.full((4, 3), 0.1 * step + 0.1) for step in range(10)]
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scaled, model = layer(), layer()
    optimizer = sgd(scaled)
    optimization = Optimization(accelerator, {"": optimizer}, {"": StepLR(optimizer, 2)})
    prepared = optimization.prepare(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    expected = sgd(model)
    schedule = StepLR(expected, 2)

    for step, input in enumerate(inputs):
        factor = torch.tensor(float("inf") if step in overflowing else 1.0)
        take_step(optimization, prepared(input).pow(2).mean() * factor)
        scaler.scale(model(input).pow(2).mean() * factor).backward()
        scaler.step(expected)
        scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() >= scale:
            schedule.step()
        expected.zero_grad()

    assert not optimization.direct
    assert are_identical(scaled.state_dict().values(), model.state_dict().values())
    assert optimizer.param_groups[0]["lr"] == expected.param_groups[0]["lr"]
    assert schedule.last_epoch == len(inputs) - len(overflowing)
    assert optimization.state_dict()["scaler"] == scaler.state_dict()


def test_an_optimizer_that_forgets_gradients_in_its_own_way_is_asked_to():
    class Zeroing(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none=set_to_none)

    model = layer()
    optimizer = Zeroing(model.parameters(), lr=0.1)
    optimization = Optimization(Accelerator(cpu=True), {"": optimizer}, {})

    take_step(optimization, model(torch.ones(1, 3)).sum())

    assert [gradient.abs().sum() for gradient in gradients(model)] == [0.0, 0.0]


def test_an_optimizer_is_chosen_by_name():
    _, optimization = several()

    assert optimization.choose("a") == "a"
    assert single(layer()).choose(None) == ""
    with pytest.raises(RunError, match=r"several optimizers \('a', 'b'\): say which"):
        optimization.choose(None)
    with pytest.raises(RunError, match="no optimizer 'c': valid are 'a', 'b'"):
        optimization.choose("c")
    with pytest.raises(RunError, match="step\\(\\) needs an optimizer: pass `optimizer="):
        Optimization(Accelerator(cpu=True), {}, {}).choose(None)


def test_learning_rates_are_named_by_optimizer_and_group():
    first, second = layer(), layer(1)
    groups = [
        {"params": [first.weight], "lr": 0.1},
        {"params": [first.bias], "lr": 0.2, "name": "bias"},
    ]
    optimizers = {"a": torch.optim.SGD(groups, lr=1.0), "b": sgd(second, 0.3)}

    rates = Optimization(Accelerator(cpu=True), optimizers, {}).learning_rates()

    assert rates == {"optim/lr/a/0": 0.1, "optim/lr/a/bias": 0.2, "optim/lr/b/0": 0.3}


def test_the_state_of_one_optimizer_is_as_torch_saves_it():
    model = layer()
    optimization = single(model, scheduler=lambda o: StepLR(o, 1))
    take_step(optimization, model(torch.ones(1, 3)).sum())

    state = optimization.state_dict()

    assert set(state) == {"optimizer", "scheduler", "scaler"}
    assert set(state["optimizer"]) == {"state", "param_groups"}
    assert state["scheduler"]["last_epoch"] == 1
    assert state["scaler"] is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_training_goes_on_from_its_state(number):
    def make():
        model = nn.ModuleDict({name: layer(i) for i, name in enumerate(["a", "b"][:number])})
        optimizers = {name: sgd(part) for name, part in model.items()}
        if number == 1:
            optimizers = {"": optimizers["a"]}
        schedulers = {name: StepLR(part, 1, 0.5) for name, part in optimizers.items()}
        return model, Optimization(Accelerator(cpu=True), optimizers, schedulers)

    def advance(model, optimization):
        for name in optimization.optimizers:
            optimization.backward(model[name or "a"](torch.ones(1, 3)).pow(2).sum(), name)
            optimization.open(name)
            optimization.step()
            optimization.zero_grad()

    whole, other = make(), make()
    advance(*whole)
    other[0].load_state_dict(whole[0].state_dict())
    other[1].load_state_dict(copy.deepcopy(whole[1].state_dict()))
    for pair in (whole, other):
        advance(*pair)

    found, expected = other[0].state_dict(), whole[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert other[1].learning_rates() == whole[1].learning_rates()
