"""Trainings that each hold something besides weights and momentum, killed and continued."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.checkpoint.sharded.state import plain_names
from danling.seed import isolated_rng
from tests.support.resume_harness import digest

STEPS, EPOCHS, KILL_AT = 4, 3, 10


class Weighted(nn.Module):
    """A loss with a learned weight, and a running centre that it subtracts."""

    centre: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("centre", torch.zeros(1))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.centre.mul_(0.9).add_(0.1 * target.mean().detach())
        error = (output - target + self.centre).square().mean()
        return (error * torch.exp(-self.weight) + self.weight).sum()


class Sam(torch.optim.Optimizer):
    """Keeps an optimizer inside, whose state is in no state dict."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


class Labelled(torch.optim.SGD):
    """Has a string and a list in the state of each parameter, and a state of another type."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["count"] = [state.get("count", [0])[0] + 1]
            state["label"] = f"step {state['count'][0]}"
            state["sum"] = state.get("sum", 0) + parameter.grad.double()
            parameter.data.add_(state["sum"], alpha=-0.001)
        return super().step()


class Counting(nn.Module):
    """Has a counter, a generator of each kind, a tensor and a buffer that no state dict holds."""

    moving: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[int] = []
        self.generator = torch.Generator().manual_seed(3)
        self.python, self.numpy = random.Random(3), np.random.default_rng(3)
        self.tensor = torch.zeros(1)
        self.register_buffer("moving", torch.zeros(1), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.seen = [*self.seen[-2:], self.calls]
            self.moving = 0.9 * self.moving + 0.1 * inputs.mean().detach()
            self.tensor.add_(0.1)
        noise = torch.randn(inputs.shape, generator=self.generator) + self.python.random()
        factor = 1 + 0.1 * self.calls + sum(self.seen) + float(self.numpy.normal())
        return inputs + 0.01 * noise * factor + self.moving + self.tensor


class Average:
    """A moving average of weights, which is no module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = [p.detach().clone() for p in module.parameters()]

    def update(self) -> torch.Tensor:
        for value, parameter in zip(self.values, self.module.parameters(), strict=True):
            value.lerp_(parameter.detach(), 0.1)
        return sum(value.sum() for value in self.values)  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = [value.clone() for value in state["values"]]


class Held(dl.AccelerateRunner):
    """A training of a small model; the cases change what it holds."""

    teacher: nn.Linear
    teachers: list[nn.Linear]
    first: nn.Linear
    second: nn.Linear
    scale: nn.Linear

    def __init__(self, root: Path, case: str, size: int = 1, **config: Any) -> None:
        settings = {
            "project_root": str(root / "experiments"),
            "seed": 1,
            "max_epochs": EPOCHS,
            "dataloader": {"batch_size": 4},
            "accelerate": {"cpu": True},
            "resume": "auto",
        }
        super().__init__(settings | config, callbacks=[ModelCheckpoint("1 step"), Kill()])
        inputs = torch.randn(4 * STEPS * size, 4, generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        self.datasets = {"train": data, "val": data}
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        self.criterion = nn.MSELoss()
        CASES[case](self)
        if self.optimizer is None:
            self.optimizer = sgd(self.model.parameters())


class Kill(dl.Callback):
    """Ends the process as the kernel does."""

    priority = 1000
    step: int | None = None

    def on_step(self, runner: Any) -> None:
        if runner.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


CASES: dict[str, Callable[[Held], None]] = {}


def case(build: Callable[[Held], None]) -> Callable[[Held], None]:
    CASES[build.__name__] = build
    return build


def extra_loss(runner: Held, loss: Callable[[Any], torch.Tensor]) -> None:
    """Add to the loss of a step."""
    plain = runner.train_step

    def train_step(batch: Any) -> torch.Tensor:
        return plain(batch) + loss(batch)

    runner.train_step = train_step


@case
def criterion(runner: Held) -> None:
    runner.criterion = Weighted()
    runner.optimizer = sgd([*runner.model.parameters(), *runner.criterion.parameters()])


@case
def teacher(runner: Held) -> None:
    runner.teacher = nn.Linear(4, 1)
    with torch.no_grad():
        runner.teacher.weight.add_(torch.rand(1, 4, generator=torch.Generator()))
    runner.teachers = [nn.Linear(4, 1)]
    networks = [runner.teacher, runner.teachers[0]]

    def distil(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            for network in networks:
                network.weight.lerp_(runner.unwrapped_model[0].weight[:1], 0.1)
        return sum((n(batch[0]) - runner.model(batch[0])).square().mean() for n in networks)

    extra_loss(runner, distil)


@case
def registered(runner: Held) -> None:
    first, second = Average(runner.model), Average(runner.model)
    runner.register_for_checkpointing(average=first)
    runner.accelerator.register_for_checkpointing(second)
    extra_loss(
        runner,
        lambda batch: (first.update() + second.update()) * runner.model(batch[0]).mean(),
    )


@case
def two_models(runner: Held) -> None:
    runner.model = None
    runner.first = nn.Linear(4, 3)
    runner.second = nn.Linear(3, 1)
    runner.optimizer = sgd([*runner.first.parameters(), *runner.second.parameters()])

    def step(batch: Any) -> torch.Tensor:
        loss: torch.Tensor = runner.criterion(runner.second(runner.first(batch[0])), batch[1])
        return loss

    runner.train_step = runner.evaluate_step = step


class Chain(nn.ModuleDict):
    """Has a forward, which nobody needs to call."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self["second"](self["first"](inputs))
        return output


def call_one_by_one(runner: Held, kind: type[nn.ModuleDict]) -> None:
    runner.model = kind({"first": nn.Linear(4, 3), "second": nn.Linear(3, 1)})

    def step(batch: Any) -> torch.Tensor:
        first, second = runner.unwrapped_model["first"], runner.unwrapped_model["second"]
        loss: torch.Tensor = runner.criterion(second(first(batch[0])), batch[1])
        return loss

    runner.train_step = runner.evaluate_step = step


@case
def networks(runner: Held) -> None:
    """The networks of a model with a forward, called one by one."""
    call_one_by_one(runner, Chain)


@case
def container(runner: Held) -> None:
    """The networks of a model without a forward."""
    call_one_by_one(runner, nn.ModuleDict)


@case
def thawed(runner: Held) -> None:
    """A layer that is frozen when the model is wrapped, and trained later."""
    runner.model[2].requires_grad_(False)
    runner.optimizer = sgd(runner.model.parameters())
    plain, model = runner.train_step, runner.model

    def step(batch: Any) -> Any:
        model[2].requires_grad_(runner.global_step > 2)
        return plain(batch)

    runner.train_step = step


@case
def frozen(runner: Held) -> None:
    """A layer is frozen and one is thawed in an epoch, and batch norm stays in evaluation mode."""
    runner.model[2].weight.requires_grad_(False)

    def on_epoch_start(runner: Any) -> None:
        if runner.epoch == 1:
            runner.model[2].weight.requires_grad_(True)
            runner.model[0].bias.requires_grad_(False)
            runner.model[1].eval()

    runner.callbacks.append(dl.callbacks.LambdaCallback(name="f", on_epoch_start=on_epoch_start))


@case
def evaluation(runner: Held) -> None:
    """The whole model is in evaluation mode from an epoch on."""

    def on_epoch_start(runner: Any) -> None:
        if runner.epoch == 1:
            runner.model.eval()

    runner.callbacks.append(dl.callbacks.LambdaCallback(name="f", on_epoch_start=on_epoch_start))


class Grow(dl.Callback):
    """Adds a parameter group in the second epoch, and again before a state with it is loaded."""

    has_grown = False

    def on_setup(self, runner: Any) -> None:
        self.runner = runner

    def grow(self) -> None:
        self.has_grown = True
        self.runner.optimizer.add_param_group(
            {"params": self.runner.model[2].parameters(), "lr": 0.01}
        )

    def on_epoch_start(self, runner: Any) -> None:
        if runner.epoch == 1:
            self.grow()

    def state_dict(self) -> dict[str, Any]:
        return {"has_grown": self.has_grown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["has_grown"] and not self.has_grown:
            self.grow()


@case
def groups(runner: Held) -> None:
    runner.optimizer = sgd(runner.model[0].parameters())
    runner.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(runner.optimizer, 12)
    runner.callbacks.append(Grow())


@case
def schedule_free_groups(runner: Held) -> None:
    runner.optimizer = sgd(runner.model[0].parameters())
    runner.callbacks.append(Grow())


@case
def attributes(runner: Held) -> None:
    runner.model.insert(0, Counting())


@case
def tied(runner: Held) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))
    runner.model = nn.Sequential(first, second, last)


@case
def compiled(runner: Held) -> None:
    """The killed process compiles a part of its model, the one that goes on compiles another."""
    torch.compiler.set_stance("force_eager")  # the names are what matters
    index = 2 if Kill.step is None else 0
    runner.model[index] = torch.compile(runner.model[index], backend="eager")


@case
def lazy(runner: Held) -> None:
    runner.model = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(1))


@case
def sam(runner: Held) -> None:
    runner.optimizer = Sam(runner.model.parameters())


@case
def strings(runner: Held) -> None:
    runner.optimizer = Labelled(runner.model.parameters(), lr=0.02, momentum=0.9)


@case
def unsaved(runner: Held) -> None:
    scale = nn.Parameter(torch.ones(1))
    runner.optimizer = sgd([*runner.model.parameters(), scale])
    extra_loss(runner, lambda batch: (scale * runner.model(batch[0])).square().mean())


@case
def left_out(runner: Held) -> None:
    type(runner).not_saved = ("scale",)
    runner.scale = nn.Linear(1, 1)
    runner.optimizer = sgd([*runner.model.parameters(), *runner.scale.parameters()])
    extra_loss(runner, lambda batch: runner.scale(runner.model(batch[0])).square().mean())


@case
def own_attributes(runner: Held) -> None:
    class Pull(dl.Callback):
        pulls = 0

        def on_step(self, runner: Any) -> None:
            self.pulls += 1
            with torch.no_grad():
                runner.model[0].weight.mul_(1 - 0.001 * self.pulls)

        def state_dict(self) -> dict[str, Any]:
            return {"pulls": self.pulls}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.pulls = state["pulls"]

    runner.callbacks.append(Pull())


class Changes(dl.Callback):
    """Assigns a part in the second epoch, and again when its state is loaded.

    Args:
        assign: A function that assigns it on the runner.
        again: Whether it does so again.
    """

    def __init__(self, assign: Callable[[Any], None], *, again: bool = True) -> None:
        self.assign, self.again, self.is_done = assign, again, False

    def on_setup(self, runner: Any) -> None:
        self.runner = runner

    def on_epoch_start(self, runner: Any) -> None:
        if runner.epoch == 1:
            self.assign(runner)
            self.is_done = True

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.is_done = state["is_done"]
        if self.is_done and self.again:
            self.assign(self.runner)


def other_data(size: int) -> torch.utils.data.TensorDataset:
    inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(size))
    return torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))


def more_data(runner: Any) -> None:
    runner.datasets["train"] = other_data(4 * STEPS + 8)


def as_much_data(runner: Any) -> None:
    runner.datasets = {**runner.datasets, "train": other_data(4 * STEPS)}


@case
def bigger(runner: Held) -> None:
    """The data grow in the second epoch."""
    runner.callbacks.append(Changes(more_data))


@case
def as_big(runner: Held) -> None:
    """The data are others in the second epoch, and nobody assigns them again."""
    runner.callbacks.append(Changes(as_much_data, again=False))


@case
def labelled_data(runner: Held) -> None:
    """So they are, and the ones that the next process begins with say that they are the same."""

    def labelled(runner: Any) -> None:
        as_much_data(runner)
        runner.datasets["train"].fingerprint = "the second"

    runner.callbacks.append(Changes(labelled, again=False))
    if Kill.step is None and any(Path(runner.config.project_root).glob("*/checkpoints")):
        labelled(runner)


@case
def own_loader(runner: Held) -> None:
    """Batches of another size come from a loader of the user's."""

    def assign(runner: Any) -> None:
        loader = torch.utils.data.DataLoader(other_data(30), batch_size=5, shuffle=True)
        runner.dataloaders = {"train": loader}

    runner.callbacks.append(Changes(assign))


@case
def other_criterion(runner: Held) -> None:
    def assign(runner: Any) -> None:
        runner.criterion = Weighted()
        parameters = [*runner.model.parameters(), *runner.criterion.parameters()]
        runner.optimizer = torch.optim.AdamW(parameters, lr=0.01)
        runner.scheduler = torch.optim.lr_scheduler.ExponentialLR(runner.optimizer, 0.9)

    runner.callbacks.append(Changes(assign))


@case
def other_model(runner: Held) -> None:
    """A model that the killed process was given in the second epoch, and the next one at once."""

    def assign(runner: Any) -> None:
        with isolated_rng():
            torch.manual_seed(5)
            runner.model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.1), nn.Linear(5, 1))
        runner.optimizer = sgd(runner.model.parameters())

    runner.callbacks.append(Changes(assign, again=False))
    if Kill.step is None and any(Path(runner.config.project_root).glob("*/checkpoints")):
        assign(runner)


class Extremes:
    """A metric with the smallest and the largest output, that cannot be computed without any."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.values = torch.empty(0)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.values = torch.cat([self.values, output.detach().flatten()])
        self.values = torch.stack([self.values.min(), self.values.max()])

    def compute(self) -> torch.Tensor:
        if not len(self.values):
            raise RuntimeError("there was no update")
        return self.values


@case
def logged(runner: Held) -> None:
    """Values of all reductions, and metrics of which one is updated in few epochs alone."""
    runner.metrics = {"always": Extremes(), "rarely": Extremes(), "val": {"own": Extremes()}}

    def step(batch: Any) -> torch.Tensor:
        output = runner.model(batch[0])
        split = runner.evaluating or "train"
        metrics = runner.metrics_of(split)
        for name, metric in metrics.items():
            if name != "rarely" or runner.epoch == 1:
                metric.update(output, batch[1])
        for on, reduce in product(("step", "epoch"), ("sum", "max", "min", "last")):
            ways: Any = {"on": on, "reduce": reduce}
            runner.log(f"{split}/{reduce}/{on}", output.mean(), **ways)
        runner.log("weighed", output.mean(), n=1 + runner.batch_index, on="epoch")
        loss: torch.Tensor = runner.criterion(output, batch[1])
        return loss

    runner.train_step = runner.evaluate_step = step


def states(runner: Held) -> Iterator[Any]:
    """What training has moved."""
    state = {} if runner.unwrapped_model is None else runner.unwrapped_model.state_dict()
    yield plain_names(state)
    for value in (runner.criterion, *vars(runner).values()):
        if isinstance(value, nn.Module) and value is not runner.model:
            yield value.state_dict()
    yield runner.optimizer.state_dict()["param_groups"]
    yield runner.results


def train(root: Path, case: str, kill_at: int | None = None) -> None:
    """Train in this process, and leave what came of it in `outcome.json`."""
    torch.set_num_threads(1)
    Kill.step = kill_at  # it is of this process
    runner = Held(root, case)
    runner.train()
    outcome = {"digest": digest(list(states(runner))), "report": runner.resume_report}
    outcome["log"] = runner.log_path.read_text()
    (root / "outcome.json").write_text(json.dumps(outcome))
