"""What training computes: compared with loops written by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from danling import AccelerateRunner, Callback
from danling.errors import ConfigError, MetricError, RunError
from danling.testing import RecordingCallback, TinyRunner
from tests.support.tensors import are_identical


def mlp(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 3))


def batches_of(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 4, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def runner_of(model, config=None, **parts: Any) -> AccelerateRunner:
    parts.setdefault("optimizer", torch.optim.SGD(model.parameters(), lr=0.1))
    parts.setdefault("criterion", nn.functional.cross_entropy)
    settings = {"seed": 0, "max_epochs": 1, **(config or {})}
    return AccelerateRunner(settings, model=model, default_callbacks=False, **parts)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


# The same weights as a loop written by hand


@dataclass
class Recipe:
    """A way to train, for the runner and for the loop by hand."""

    optimizer: Any = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler: Any = None
    accumulation: int = 1
    max_norm: float | None = None
    max_value: float | None = None
    steps: int = 1000
    batches: int = 50

    def by_hand(self, model: nn.Module) -> None:
        data, optimizer = batches_of(self.batches), self.optimizer(model.parameters())
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        done = 0
        while done < self.steps:
            for index, (points, target) in enumerate(data):
                first = index - index % self.accumulation
                size = min(self.accumulation, len(data) - first)
                loss = nn.functional.cross_entropy(model(points), target)
                (loss / size).backward()
                if index + 1 < first + size:
                    continue
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
                if self.max_value is not None:
                    nn.utils.clip_grad_value_(model.parameters(), self.max_value)
                optimizer.step()
                if scheduler:
                    scheduler.step()
                optimizer.zero_grad()
                done += 1
                if done == self.steps:
                    break

    def by_runner(self, model: nn.Module, **parts: Any) -> AccelerateRunner:
        optimizer = self.optimizer(model.parameters())
        config = {
            "max_epochs": None,
            "max_steps": self.steps,
            "max_grad_norm": self.max_norm,
            "max_grad_value": self.max_value,
            "accelerate": {"gradient_accumulation_steps": self.accumulation},
        }
        runner = runner_of(
            model,
            config,
            optimizer=optimizer,
            scheduler=self.scheduler(optimizer) if self.scheduler else None,
            **parts,
        )
        runner.train()
        return runner


RECIPES = {
    "sgd with momentum": Recipe(),
    "adamw with a schedule": Recipe(
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=1001),
    ),
    "clipping by norm": Recipe(max_norm=0.1, steps=200),
    "clipping by value": Recipe(max_value=0.01, steps=200),
    "clipping by norm and value": Recipe(max_norm=0.5, max_value=0.02, steps=200),
    "windows of 3, the last of 2": Recipe(accumulation=3, steps=200),
    "all of it": Recipe(
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1000),
        accumulation=4,
        max_norm=0.2,
        max_value=0.05,
        batches=49,
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_weights_after_many_steps_are_those_of_a_loop_by_hand(recipe: Recipe):
    expected, model = mlp(), mlp()
    recipe.by_hand(expected)

    runner = recipe.by_runner(model, dataloaders={"train": batches_of(recipe.batches)})

    assert runner.global_step == recipe.steps
    assert are_identical(weights(model), weights(expected))


def test_a_loader_of_the_user_s_is_read_in_its_order():
    points, target = map(torch.cat, zip(*batches_of(50), strict=True))
    data = torch.utils.data.DataLoader(TensorDataset(points, target), batch_size=8)
    recipe = Recipe(steps=100)
    expected, model = mlp(), mlp()
    recipe.by_hand(expected)

    recipe.by_runner(model, dataloaders={"train": data})

    assert are_identical(weights(model), weights(expected))


class Copying(Callback):
    def __init__(self):
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_batch_start(self, runner, batch):
        self.batches.append(tuple(part.clone() for part in batch))


def test_weights_are_those_of_a_loop_by_hand_over_the_runner_s_order():
    points, target = map(torch.cat, zip(*batches_of(13), strict=True))
    data = TensorDataset(points[:101], target[:101])
    expected, model, copying = mlp(), mlp(), Copying()
    config = {"max_epochs": 5, "dataloader": {"batch_size": 8}}

    runner_of(model, config, datasets={"train": data}, callbacks=[copying]).train()

    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for batch_points, batch_target in copying.batches:
        nn.functional.cross_entropy(expected(batch_points), batch_target).backward()
        optimizer.step()
        optimizer.zero_grad()
    first, second = copying.batches[:13], copying.batches[13:26]
    seen = torch.cat([part for part, _ in first])
    assert len(copying.batches) == 5 * 13
    assert sorted(seen.tolist()) == sorted(points[:101].tolist())
    assert not torch.equal(seen, torch.cat([part for part, _ in second]))
    assert are_identical(weights(model), weights(expected))


def test_dropout_draws_as_in_a_loop_by_hand():
    data = batches_of(20)
    expected, model = mlp(dropout=0.5), mlp(dropout=0.5)
    runner = runner_of(model, dataloaders={"train": data, "val": data})
    torch.manual_seed(7)
    runner.train()
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for points, target in data:
        nn.functional.cross_entropy(expected(points), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert are_identical(weights(model), weights(expected))


def test_a_partial_window_has_the_gradient_of_its_samples_as_one_batch():
    data = batches_of(5)
    gradients = []

    class Keeping(Callback):
        def on_before_step(self, runner):
            gradients.append(runner.model[0].weight.grad.clone())

    model = mlp()
    config = {"accelerate": {"gradient_accumulation_steps": 3}}
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    for loaded in (data, lambda: iter(data)):  # of known, and of unknown length
        runner_of(
            model,
            config,
            optimizer=sgd,
            dataloaders={"train": loaded},
            callbacks=[Keeping()],
        ).train()

    whole = mlp()
    for part in (data[:3], data[3:]):
        whole.zero_grad()
        points, target = map(torch.cat, zip(*part, strict=True))
        nn.functional.cross_entropy(whole(points), target).backward()
        expected = whole[0].weight.grad
        torch.testing.assert_close(gradients.pop(0), expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradients[1], expected, rtol=1e-5, atol=1e-7)
    assert len(gradients) == 2


class Stream(IterableDataset):
    """Samples whose number nobody knows."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for points, target in self.batches:
            yield from zip(points, target, strict=True)


def test_a_stream_without_length_trains_every_window():
    model, recording = mlp(), RecordingCallback()
    config = {
        "max_epochs": 2,
        "dataloader": {"batch_size": 8},
        "accelerate": {"gradient_accumulation_steps": 4},
    }

    runner = runner_of(
        model, config, datasets={"train": Stream(batches_of(10))}, callbacks=[recording]
    )
    runner.train()

    assert recording.count("on_batch_end") == recording.count("on_fetch_end") == 20
    assert recording.count("on_fetch_start") == 20 + 2  # the end of an epoch is found by asking
    assert recording.count("on_step") == 6
    assert runner.global_step == 6
    assert runner.total_steps is None
    assert math.isnan(runner.progress)


class Boasting(Stream):
    """Says that it has more samples than it gives."""

    def __len__(self):
        return 88


def test_a_stream_shorter_than_its_length_leaves_no_gradient_for_the_next_epoch():
    model = mlp()
    config = {
        "max_epochs": 2,
        "dataloader": {"batch_size": 8},
        "accelerate": {"gradient_accumulation_steps": 4},
    }
    grads = []

    class Watching(Callback):
        def on_epoch_start(self, runner):
            grads.append([parameter.grad for parameter in runner.model.parameters()])

    runner = runner_of(
        model, config, datasets={"train": Boasting(batches_of(10))}, callbacks=[Watching()]
    )
    runner.train()

    assert grads == [[None] * 4, [None] * 4]


# Means over samples


def correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


def uneven(scale: float = 1.0) -> TensorDataset:
    """101 samples, whose squares are of magnitudes from 1e-6 to 1e6."""
    generator = torch.Generator().manual_seed(3)
    values = 10 ** (torch.rand(101, 1, generator=generator) * 6 - 3) * scale
    return TensorDataset(values, torch.zeros(101, 1))


def test_loss_and_accuracy_are_means_over_101_samples_in_batches_of_8():
    points, target = map(torch.cat, zip(*batches_of(13), strict=True))
    points, target = points[:101], target[:101]
    model = mlp()
    runner = runner_of(
        model,
        {"dataloader": {"batch_size": 8}},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        datasets={split: TensorDataset(points, target) for split in ("train", "val")},
        metrics={"accuracy": correct},
    )

    runner.train()

    with torch.no_grad():
        output = model(points).double()
    loss = nn.functional.cross_entropy(output, target).item()
    accuracy = (output.argmax(1) == target).double().mean().item()
    for split in ("train", "val"):
        result = runner.results[0][split]
        assert result["loss"] == pytest.approx(loss, rel=1e-6)
        assert result["accuracy"] == pytest.approx(accuracy, rel=1e-6)


def test_means_of_mixed_magnitude_are_exact():
    model = nn.Identity()
    weight = nn.Parameter(torch.zeros(()))

    class Squares(AccelerateRunner):
        def train_step(self, batch):
            return (batch[0] ** 2).mean() + 0 * weight

        evaluate_step = train_step

    data = uneven()
    runner = Squares(
        {"seed": 0, "max_epochs": 1, "dataloader": {"batch_size": 8}},
        model=model,
        optimizer=torch.optim.SGD([weight], lr=0.1),
        datasets={"train": data, "val": data},
        default_callbacks=False,
    )
    runner.train()

    expected = (data.tensors[0].double() ** 2).mean().item()
    assert runner.results[0]["train"]["loss"] == pytest.approx(expected, rel=1e-6)
    assert runner.results[0]["val"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_step_that_says_n_is_weighted_by_it():
    class Tokens(TinyRunner):
        def train_step(self, batch):
            loss = super().train_step(batch)["loss"]
            tokens = 1 + self.batch_index
            return {"loss": loss * 0 + tokens, "n": tokens, "logits": torch.zeros(3, 3)}

        evaluate_step = train_step

    runner = Tokens({"max_epochs": 1})
    runner.train()

    assert runner.results[0]["train"] == {"loss": (1 + 4 + 9 + 16) / 10}


# Shapes of batches and outputs


@dataclass
class ModelOutput:
    loss: Tensor | None
    logits: Tensor


class Encoder(nn.Module):
    """In the style of Hugging Face: keywords in, an object with a loss out."""

    def __init__(self, mapping=False):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.mapping = mapping

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if self.mapping else ModelOutput(loss, logits)


class Keyed(torch.utils.data.Dataset):
    def __init__(self, labelled=True):
        self.points, self.target = map(torch.cat, zip(*batches_of(3), strict=True))
        self.labelled = labelled

    def __len__(self):
        return 21

    def __getitem__(self, index):
        item = {"inputs": self.points[index]}
        return item | ({"labels": self.target[index]} if self.labelled else {})


@pytest.mark.parametrize("mapping", [False, True])
def test_a_mapping_is_passed_to_the_model_which_returns_the_loss(mapping):
    torch.manual_seed(0)
    model = Encoder(mapping)
    before = copy.deepcopy(model)
    data = Keyed()
    runner = runner_of(
        model,
        {"dataloader": {"batch_size": 8}},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=None,
        datasets={"train": data, "val": data, "test": Keyed(labelled=False)},
        metrics={"accuracy": correct} if not mapping else None,
    )
    runner.train()

    expected = before(data.points[:21], data.target[:21])
    expected = expected["loss"] if mapping else expected.loss
    assert runner.results[0]["val"]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert set(runner.results[0]["train"]) == ({"loss"} if mapping else {"loss", "accuracy"})
    predicted = runner.predict("test")
    if not mapping:
        torch.testing.assert_close(predicted, before(data.points[:21]).logits)


@pytest.mark.parametrize("metrics", [None, {"accuracy": correct}])
def test_a_mapping_without_labels_says_that_there_is_no_loss(metrics):
    model = Encoder()
    runner = runner_of(model, datasets={"train": Keyed(labelled=False)}, metrics=metrics)

    with pytest.raises(MetricError, match="loss"):
        runner.train()


def test_bf16_autocast_trains_on_a_cpu():
    kinds = []

    class Watching(TinyRunner):
        def train_step(self, batch):
            loss = super().train_step(batch)
            with self.autocast():
                kinds.append(self.model.weight.mm(self.model.weight.t()).dtype)
            return loss

    runner = Watching({"max_epochs": 3, "accelerate": {"mixed_precision": "bf16", "cpu": True}})
    runner.train()

    assert set(kinds) == {torch.bfloat16}
    assert runner.model.weight.dtype == torch.float32
    assert runner.results[-1]["train"]["loss"] < runner.results[0]["train"]["loss"]


def test_parts_can_be_made_in_the_constructor_of_a_subclass():
    class Own(AccelerateRunner):
        def __init__(self, config):
            super().__init__(config, default_callbacks=False)
            self.model = mlp()
            self.criterion = nn.functional.cross_entropy
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
            self.dataloaders = {"train": batches_of(4), "val": batches_of(2)}
            self.metrics = {"accuracy": correct}
            self.recording = RecordingCallback("on_step")
            self.callbacks.append(self.recording)

    runner = Own({"seed": 0, "max_epochs": 2})
    runner.train()

    assert runner.recording.count("on_step") == 8
    assert set(runner.results[-1]["val"]) == {"loss", "accuracy"}
    assert runner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**8)


# Schedules


def test_a_schedule_moves_once_per_optimizer_step_by_default():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    config = {"max_epochs": 2, "accelerate": {"gradient_accumulation_steps": 2}}

    runner_of(
        model,
        config,
        optimizer=optimizer,
        scheduler=scheduler,
        dataloaders={"train": batches_of(3)},
    ).train()

    assert optimizer.param_groups[0]["lr"] == 0.5**4


def test_a_schedule_of_epochs_moves_after_each_whole_epoch():
    model, rates = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    class Watching(Callback):
        def on_step(self, runner):
            rates.append(runner.optimizer.param_groups[0]["lr"])

    runner_of(
        model,
        {"max_epochs": 9, "max_steps": 8, "scheduler_interval": "epoch"},
        optimizer=optimizer,
        scheduler=scheduler,
        dataloaders={"train": batches_of(3)},
        callbacks=[Watching()],
    ).train()

    assert rates == [1.0] * 3 + [0.5] * 3 + [0.25] * 2
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("every", ["1 epoch", "2 steps"])
def test_reduce_on_plateau_moves_once_after_each_evaluation(interval, every):
    model, seen = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    class Watching(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics)

    runner = runner_of(
        model,
        {"max_epochs": 3, "evaluate_every": every, "scheduler_interval": interval},
        optimizer=optimizer,
        scheduler=Watching(optimizer, patience=0),
        dataloaders={"train": batches_of(4), "val": batches_of(2)},
    )
    runner.train()

    evaluations = 3 if every == "1 epoch" else 6
    assert len(seen) == evaluations
    assert set(seen) == {runner.best_score}
    assert runner.scores.count(runner.best_score) == evaluations


def test_reduce_on_plateau_follows_the_training_where_nothing_is_evaluated():
    model, seen = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Watching(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics)

    runner = runner_of(
        model,
        {"max_epochs": 3},
        optimizer=optimizer,
        scheduler=Watching(optimizer),
        dataloaders={"train": batches_of(4)},
    )
    runner.train()

    assert seen == [result["train"]["loss"] for result in runner.results]


def test_several_schedules_follow_their_optimizers():
    adversaries = Adversaries({"seed": 0, "max_epochs": 1})
    adversaries.scheduler = {
        "generator": torch.optim.lr_scheduler.StepLR(adversaries.optimizer["generator"], 1)
    }
    adversaries.fit()

    rates = [optimizer.param_groups[0]["lr"] for optimizer in adversaries.optimizers]
    assert rates == pytest.approx([0.1 * 0.1**4, 0.1])


def test_a_schedule_without_its_optimizer_is_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = {"generator": torch.optim.lr_scheduler.StepLR(optimizer, 1)}
    runner = runner_of(model, scheduler=scheduler, dataloaders={"train": batches_of(1)})

    with pytest.raises(ConfigError, match="the scheduler 'generator' has no optimizer"):
        runner.train()


# Several optimizers


class Adversaries(AccelerateRunner):
    """Two linear maps against each other, each with its optimizer."""

    def __init__(self, config):
        super().__init__(config, default_callbacks=False)
        torch.manual_seed(5)
        self.model = nn.ModuleDict({"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})
        self.optimizer = {
            name: torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9)
            for name, part in self.model.items()
        }
        self.dataloaders = {"train": batches_of(4)}

    def fit(self):
        with self:
            for _ in self.epochs():
                for points, _ in self.batches("train"):
                    critic, generator = losses(self.model, points)
                    self.step(critic(), "critic")
                    self.step(generator(), "generator")


def losses(model, points):
    generator, critic = model["generator"], model["critic"]

    def of_critic():
        fake = generator(points).detach()
        return critic(fake).mean() - critic(points).mean() + critic(points).pow(2).mean()

    return of_critic, lambda: -critic(generator(points)).mean()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_optimizers_step_as_in_a_loop_by_hand(accumulation):
    accelerate = {"gradient_accumulation_steps": accumulation}
    runner = Adversaries({"seed": 0, "max_epochs": 3, "accelerate": accelerate})
    model = copy.deepcopy(runner.model)
    optimizers = {
        name: torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9)
        for name, part in model.items()
    }
    runner.fit()

    for _ in range(3):
        sums: dict[Tensor, Tensor] = {}
        for index, (points, _) in enumerate(batches_of(4), 1):
            for name, loss_of in zip(("critic", "generator"), losses(model, points), strict=True):
                own = list(model[name].parameters())
                found = torch.autograd.grad(loss_of() / accumulation, own)
                for parameter, gradient in zip(own, found, strict=True):
                    sums[parameter] = sums.get(parameter, 0) + gradient
                if index % accumulation == 0:
                    for parameter in own:
                        parameter.grad = sums.pop(parameter)
                    optimizers[name].step()
    assert are_identical(weights(runner.model), weights(model))
    assert runner.global_step == 2 * 3 * 4 // accumulation


def test_several_optimizers_want_a_name():
    class Forgetful(Adversaries):
        def train_step(self, batch):
            return self.model["critic"](batch[0]).mean()

    with pytest.raises(RunError, match=r"several optimizers \('generator', 'critic'\)"):
        Forgetful({"seed": 0, "max_epochs": 1}).train()


def test_an_optimizer_that_does_not_exist_is_named():
    runner = Adversaries({"seed": 0, "max_epochs": 1})
    with runner, pytest.raises(RunError, match="'crtic': did you mean 'critic'"):
        for _ in runner.epochs():
            for points, _ in runner.batches():
                runner.step(runner.model["critic"](points).mean(), "crtic")


def test_a_log_is_due_whichever_of_the_optimizers_reaches_it():
    runner, logged = Adversaries({"seed": 0, "max_epochs": 1, "log_interval": 3}), []

    class Logged(Callback):
        def on_log(self, runner, metrics):
            logged.append(runner.global_step)

    runner.callbacks.append(Logged())
    runner.fit()

    assert logged == [4, 6, 8]
