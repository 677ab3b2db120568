"""Optimizers that step together, and schedules each at its own interval, against plain PyTorch."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

import danling as dl
from danling.errors import ConfigError, MetricError
from danling.optimization import Schedule
from tests.support import scheduled as work
from tests.support.resume_harness import in_process

Move = Callable[[], object]


def by_hand(
    optimizers: list[Any],
    model: nn.Module,
    *,
    after_step: Callable[[int], object] = lambda steps: None,
    after_epoch: Callable[[int, float], object] = lambda epochs, spread: None,
) -> list[Any]:
    """The loop of PyTorch; returns the learning rates after each step."""
    rates = []
    for epoch in range(work.EPOCHS):
        for index, (input, target) in enumerate(work.make_batches()):
            nn.functional.mse_loss(model(input), target).backward()
            for optimizer in optimizers:
                optimizer.step()
            after_step(epoch * work.STEPS + index + 1)
            rates.append([g["lr"] for o in optimizers for g in o.param_groups])
            for optimizer in optimizers:
                optimizer.zero_grad()
        with torch.no_grad():
            spreads = [
                work.spread(model(input), target) for input, target in work.make_batches()[:2]
            ]
        after_epoch(epoch + 1, sum(map(float, spreads)) / 2)
    return rates


def each(schedulers: list[Any]) -> None:
    for scheduler in schedulers:
        scheduler.step()


def expected_of(case: str, model: nn.Module) -> list[Any]:
    """The plain loop of a case."""
    if case == "together":
        optimizers, (first, second) = work.together(model)
        return by_hand(optimizers, model, after_step=lambda _: each([first, second]))
    if case == "named_together":
        optimizers = work.together(model)[0]
        both = [LambdaLR(o, lambda n: 1 - n / work.EPOCHS) for o in optimizers]
        return by_hand(optimizers, model, after_epoch=lambda *_: each(both))
    optimizer = work.sgd(model)
    if case == "two_schedules":
        slow, halving = ExponentialLR(optimizer, 0.9), StepLR(optimizer, 1, 0.5)
        return by_hand(
            [optimizer],
            model,
            after_step=lambda steps: slow.step() if steps % 4 == 0 else None,
            after_epoch=lambda *_: halving.step(),
        )
    if case == "plateau":
        watching = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        slow = ExponentialLR(optimizer, 0.9)

        def after_epoch(epochs: int, spread: float) -> None:
            watching.step(spread)
            if epochs % 2 == 0:
                slow.step()

        return by_hand([optimizer], model, after_epoch=after_epoch)
    if case == "counted":
        timm = work.Timm(optimizer, in_epochs=False)
        return by_hand([optimizer], model, after_step=timm.step_update)
    total = work.EPOCHS * work.STEPS
    schedule: Any = (
        work.make_warmup(optimizer, total)
        if case == "named"
        else OneCycleLR(optimizer, 0.3, total_steps=total)
    )
    return by_hand([optimizer], model, after_step=lambda n: n < total and schedule.step())


@pytest.mark.parametrize("case", work.CASES)
def test_a_training_is_the_loop_of_pytorch_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, expected = work.make_model(), work.make_model()
    runner = work.make_runner(tmp_path, work.CASES[case](model), model, resume=False)
    rates: list[Any] = []
    runner.callbacks.append(work.Rates(rates))

    runner.train()
    expected_rates = expected_of(case, expected)

    same = [
        torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True)
    ]
    assert same == [True] * 4
    assert rates[:-1] == expected_rates[:-1]  # the last move has no step after it


@pytest.mark.parametrize("case", work.CASES)
def test_a_training_that_is_killed_goes_on_exactly(case: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert in_process(work.train, whole, case) == 0
    for step in (7, 15):  # within epochs, and within the four steps of a frequency
        assert in_process(work.train, killed, case, step) == -signal.SIGKILL
    assert in_process(work.train, killed, case) == 0

    first, second = (json.loads((root / "outcome.json").read_text()) for root in (whole, killed))
    assert first.pop("report") is None
    assert second.pop("report") == [True, []]
    assert second == first


# Optimizers that step together


def test_a_list_is_one_step_and_its_parts_have_numbers(tmp_path: Path) -> None:
    model = work.make_model()
    parts = work.together(model)
    runner = work.make_runner(tmp_path, parts, model, resume=False, max_epochs=1, max_grad_norm=0.1)
    norms: list[Tensor] = []

    class Norms(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            norms.append(
                nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            )

    runner.callbacks.append(Norms())
    runner.train()

    assert runner.global_step == work.STEPS
    assert [float(norm) for norm in norms] == pytest.approx([0.1] * work.STEPS, rel=1e-3)
    assert list(runner.optimization.learning_rates()) == ["optim/lr/0/0", "optim/lr/1/0"]
    assert runner.optimizers == parts[0]
    saved = dl.read_checkpoint(runner.checkpoint_dir / "latest.pth")
    assert list(saved["optimizer"]["by_name"]) == ["0", "1"]
    assert list(saved["scheduler"]["by_name"]) == ["0", "1"]


def test_lists_by_name_step_apart() -> None:
    models = {"a": work.make_model(), "b": work.make_model()}
    optimizers = {"a": work.together(models["a"])[0], "b": work.sgd(models["b"])}

    class Two(dl.AccelerateRunner):
        def train(self) -> None:
            with self:
                for _ in self.epochs():
                    for input, target in self.batches():
                        for name in self.model:
                            output = self.model[name](input)
                            self.step(nn.functional.mse_loss(output, target), name)

    runner = Two(
        {"seed": 0, "max_epochs": work.EPOCHS, "accelerate": {"cpu": True}},
        model=models,
        optimizer=optimizers,
        dataloaders={"train": work.make_batches()},
        default_callbacks=False,
    )
    runner.train()

    for name, make in (("a", lambda m: work.together(m)[0]), ("b", lambda m: [work.sgd(m)])):
        expected = work.make_model()
        by_hand(make(expected), expected)
        pairs = zip(models[name].parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert list(runner.optimization.optimizers) == ["a.0", "a.1", "b"]


# Schedules


def test_a_scheduler_without_a_state_is_a_warning_and_a_reason(tmp_path: Path) -> None:
    def run(kill_at: int | None) -> None:
        model = work.make_model()
        parts = work.counted_epochs(model)
        runner = work.make_runner(tmp_path, parts, model, kill_at)
        runner.train()
        rate = runner.optimizer.param_groups[0]["lr"]
        told = [rate, runner.resume_report["reasons"] if runner.resume_report else None]
        (tmp_path / "outcome.json").write_text(json.dumps(told))

    assert in_process(run, 8) == -signal.SIGKILL
    assert in_process(run, None) == 0

    rate, reasons = json.loads((tmp_path / "outcome.json").read_text())
    line = "the scheduler (OfEpochs) has no state_dict(): a resumed run begins its schedule anew"
    assert reasons == [line]
    assert rate == 0.1 * 0.5**4  # what counts its moves is in the checkpoint
    (log,) = tmp_path.glob("*/run.log")
    assert f"a resume will not be exact: {line}" in log.read_text()


def test_timm_is_told_of_updates_epochs_and_the_value_that_is_watched(tmp_path: Path) -> None:
    model = work.make_model()
    optimizer = work.sgd(model)
    timm = work.Timm(optimizer, in_epochs=True)
    parts = optimizer, Schedule(timm, monitor="val/spread")
    runner = work.make_runner(tmp_path, parts, model, resume=False, max_epochs=2)
    runner.train()

    updates = [row[1] for row in timm.seen if row[0] == "update"]
    assert updates == list(range(1, 2 * work.STEPS + 1))
    epochs = [row[1:] for row in timm.seen if row[0] == "epoch"]
    assert epochs == [(n + 1, runner.results[n]["val"]["spread"]) for n in range(2)]
    assert optimizer.param_groups[0]["lr"] == 0.1 / 3


def test_a_monitor_that_is_not_in_the_result_is_an_error_that_says_what_is(tmp_path: Path) -> None:
    model = work.make_model()
    optimizer = work.sgd(model)
    parts = optimizer, Schedule(ReduceLROnPlateau(optimizer), monitor="val/spred")

    with pytest.raises(MetricError, match=r"watches 'val/spred'.*did you mean 'val/spread'"):
        work.make_runner(tmp_path, parts, model, resume=False).train()


def test_a_monitor_of_no_split_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = work.make_model()
    optimizer = work.sgd(model)
    parts = optimizer, Schedule(ReduceLROnPlateau(optimizer), monitor="valid/loss")
    runner = work.make_runner(tmp_path, parts, model, resume=False)

    with pytest.raises(MetricError, match=r"watches 'valid/loss', which is of no split"):
        runner.train()
    assert runner.global_step == 0


class Used(dl.Callback):
    """Writes down the learning rate that each step uses."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        self.rates.append(runner.optimizer.param_groups[0]["lr"])


def test_a_longer_training_is_followed_by_the_schedule_that_has_its_length(tmp_path: Path) -> None:
    model = work.make_model()
    parts = work.sgd(model), "linear"
    runner = work.make_runner(tmp_path, parts, model, resume=False, max_epochs=2)
    runner.train()
    assert runner.scheduler.get_last_lr() == [0.0]

    runner.config.max_epochs = 4
    rates: list[float] = []
    runner.callbacks.append(Used(rates))
    runner.train()

    total = 4 * work.STEPS
    assert rates == [0.1 * (1 - n / total) for n in range(2 * work.STEPS, total)]


def test_a_resume_with_another_length_follows_it_at_once(tmp_path: Path) -> None:
    def run(epochs: int) -> None:
        model = work.make_model()
        runner = work.make_runner(tmp_path, (work.sgd(model), "linear"), model, max_epochs=epochs)
        rates: list[float] = []
        runner.callbacks.append(Used(rates))
        if epochs == 4:
            (path,) = tmp_path.glob("*/checkpoints/latest.pth")
            runner.load_checkpoint(path)
        runner.train()
        (tmp_path / "rates.json").write_text(json.dumps(rates))

    assert in_process(run, 2) == 0
    assert in_process(run, 4) == 0

    total = 4 * work.STEPS
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates == [0.1 * (1 - n / total) for n in range(2 * work.STEPS, total)]


def test_a_schedule_is_taken_from_the_configuration(tmp_path: Path) -> None:
    config = dl.Config(schedule={"name": "warmup_stable_decay", "warmup": 2, "decay": 0.5})
    model = work.make_model()
    runner = work.make_runner(tmp_path, (work.sgd(model), config.schedule), model, resume=False)
    rates: list[Any] = []
    runner.callbacks.append(work.Rates(rates))
    runner.train()

    factors = [rate[0] / 0.1 for rate in rates]
    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert factors[11:] == pytest.approx([1 - n / 12 for n in range(13)])


def test_several_that_step_apart_each_have_the_steps_of_their_own(tmp_path: Path) -> None:
    models = {"a": work.make_model(), "b": work.make_model()}
    optimizers = {name: work.sgd(model) for name, model in models.items()}
    runner = dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 3, "accelerate": {"cpu": True}},
        model=models,
        optimizer=optimizers,
        scheduler={"a": "linear", "b": {"name": "cosine", "interval": "epoch"}},
        dataloaders={"train": work.make_batches()},
        default_callbacks=False,
    )
    runner.prepare()

    totals = {name: s.lr_lambdas[0].total for name, s in runner.optimization.schedulers.items()}
    assert totals == {"a": 3 * work.STEPS, "b": 3}


def test_a_length_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    model = work.make_model()
    runner = dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}},
        model=model,
        optimizer=work.sgd(model),
        scheduler="cosine",
        dataloaders={"train": iter(work.make_batches())},
        default_callbacks=False,
    )

    with pytest.raises(ConfigError, match=r"'cosine' needs the length of the training.*max_steps"):
        runner.train()


def test_a_scheduler_of_the_old_kind_is_given_as_it_was() -> None:
    model = work.make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    runner = dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}},
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        dataloaders={"train": work.make_batches()},
        criterion=nn.functional.mse_loss,
        default_callbacks=False,
    )
    runner.train()

    assert runner.scheduler is scheduler
    assert scheduler.last_epoch == work.STEPS
    assert set(runner.state_dict()) & {"schedules"} == set()


def test_a_scheduler_inside_another_is_saved_by_it_or_named() -> None:
    class Keeping(work.Timm):
        """Keeps the state of what it asks to itself, as a plateau of timm does."""

        def __init__(self, optimizer: Any) -> None:
            super().__init__(optimizer, in_epochs=True)
            self.lr_scheduler = ReduceLROnPlateau(optimizer)

    model = work.make_model()
    optimizer = work.sgd(model)
    inner = [ExponentialLR(optimizer, 0.9), StepLR(optimizer, 3)]
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, inner, [5])
    runner = dl.AccelerateRunner(
        {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}},
        model=model,
        criterion=nn.functional.mse_loss,
        optimizer=optimizer,
        scheduler=[Keeping(optimizer), chained],
        dataloaders={"train": work.make_batches()},
        default_callbacks=False,
    )
    runner.prepare()

    lines = runner.state_dict()["run"]["lost"]
    assert lines == [
        "scheduler '0' keeps lr_scheduler (ReduceLROnPlateau), whose state is not in its "
        "state_dict()"
    ]
