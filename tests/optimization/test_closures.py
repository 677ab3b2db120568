"""Optimizers that evaluate the model themselves, against plain PyTorch, bit for bit."""

from __future__ import annotations

import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD

import danling as dl
from danling.callbacks import BatchSizeFinder, LearningRateFinder
from danling.errors import CallbackError, ConfigError, RunError
from tests.support import closing
from tests.support.resume_harness import in_process

CASES = [
    (case, accumulation, norm)
    for case in closing.OPTIMIZERS
    for accumulation, norm in ((1, None), (1, 0.3), (2, None))
]


def by_hand(case: str, accumulation: int, norm: float | None) -> tuple[nn.Module, list[float]]:
    """The loop of PyTorch; returns the model and the loss before each step."""
    model = closing.make_model()
    optimizer: Any = closing.OPTIMIZERS[case](model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    losses = []
    for _ in range(closing.EPOCHS):
        batches = closing.make_batches()
        for start in range(0, len(batches), accumulation):
            window = batches[start : start + accumulation]

            def closure(window: Any = window) -> Tensor:
                if torch.is_grad_enabled():
                    optimizer.zero_grad()
                total = torch.zeros(())
                for input, target in window:
                    loss = nn.functional.mse_loss(model(input), target) / accumulation
                    if torch.is_grad_enabled():
                        loss.backward()
                    total = total + loss.detach()
                if norm is not None and torch.is_grad_enabled():
                    nn.utils.clip_grad_norm_(model.parameters(), norm)
                return total

            if case == "climbed":
                losses.append(float(closure()))
                optimizer.step(closure)
            else:
                losses.append(float(optimizer.step(closure)))
            schedule.step()
    return model, losses


@pytest.mark.parametrize(("case", "accumulation", "norm"), CASES)
def test_a_training_is_the_loop_of_pytorch_bit_for_bit(
    case: str, accumulation: int, norm: float | None, tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "max_grad_norm": norm,
        "accelerate": {"cpu": True, "gradient_accumulation_steps": accumulation},
        "log_interval": 1,
    }
    runner = closing.make_runner(tmp_path, case, resume=False, **config)
    losses: list[float] = []

    class Losses(dl.Callback):
        def on_log(self, runner: dl.AccelerateRunner, metrics: Any) -> None:
            losses.extend([metrics["train/loss"]] if "train/loss" in metrics else [])

    runner.callbacks.append(Losses())
    runner.train()
    expected, expected_losses = by_hand(case, accumulation, norm)

    pairs = zip(runner.model.parameters(), expected.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [True] * 4
    assert runner.global_step == closing.EPOCHS * closing.BATCHES // accumulation
    assert losses == pytest.approx(expected_losses, rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", closing.OPTIMIZERS)
def test_a_training_that_is_killed_goes_on_exactly(
    case: str, accumulation: int, tmp_path: Path
) -> None:
    config = {"accelerate": {"cpu": True, "gradient_accumulation_steps": accumulation}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert in_process(closing.train, whole, case, None, config) == 0
    assert in_process(closing.train, killed, case, 6, config) == -signal.SIGKILL
    assert in_process(closing.train, killed, case, None, config) == 0

    first, second = closing.outcome(whole), closing.outcome(killed)
    assert first.pop("report") is None
    assert second.pop("report") == [True, []]
    assert second == first


# What a step tells


class Quiet(dl.AccelerateRunner):
    """Counts what is logged and measured by evaluations."""

    evaluations = 0

    def train_step(self, batch: Any) -> Any:
        self.evaluations += 1
        self.log("count", float(self.evaluations))
        return super().train_step(batch)


class Count:
    """A metric that counts its updates."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.updates = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.updates += 1

    def compute(self) -> float:
        return float(self.updates)


def quiet(optimizer: Any = None, **parts: Any) -> Quiet:
    model = closing.make_model()
    config = {"seed": 0, "max_epochs": 1, "accelerate": {"cpu": True}} | parts.pop("config", {})
    return Quiet(
        config,
        model=model,
        criterion=nn.functional.mse_loss,
        optimizer=(optimizer or closing.OPTIMIZERS["sam"])(model),
        dataloaders={"train": closing.make_batches()},
        default_callbacks=False,
        **parts,
    )


def test_only_the_first_evaluation_is_logged_and_measured() -> None:
    runner = quiet(metrics={"updates": Count()})

    runner.train()

    assert runner.evaluations == 2 * closing.BATCHES
    result = runner.results[0]["train"]
    assert result["updates"] == closing.BATCHES
    firsts = range(1, 2 * closing.BATCHES, 2)
    assert result["count"] == pytest.approx(sum(firsts) / len(firsts))


def test_hooks_fire_once_and_see_the_gradients_of_the_first_evaluation() -> None:
    norms: list[tuple[float, float]] = []
    outputs: list[Any] = []

    class Watch(dl.Callback):
        def on_before_step(self, runner: dl.AccelerateRunner) -> None:
            norms.append((float(runner.grad_norm), gradient_norm(runner.model)))

        def on_step(self, runner: dl.AccelerateRunner) -> None:
            assert float(runner.grad_norm) == norms[-1][0]

        def on_batch_end(self, runner: dl.AccelerateRunner, batch: Any, output: Any) -> None:
            outputs.append(output)

    runner = quiet(callbacks=[Watch()], config={"max_grad_norm": 0.1})
    runner.train()

    assert len(norms) == len(outputs) == closing.BATCHES
    assert all(one == pytest.approx(other) for one, other in norms)
    assert all(isinstance(output, Tensor) for output in outputs)


def gradient_norm(model: nn.Module) -> float:
    return float(
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )


def test_a_closure_with_an_optimizer_that_needs_none_is_an_ordinary_step() -> None:
    def make(model: nn.Module) -> SGD:
        return SGD(model.parameters(), lr=0.1, momentum=0.9)

    class Closing(Quiet):
        def train(self) -> None:
            with self:
                for _ in self.epochs():
                    for batch in self.batches():
                        self.step(closure=partial(self.train_step, batch))

    plain, closed = quiet(make), quiet(make)
    closed.__class__ = Closing
    plain.train()
    closed.train()

    pairs = zip(plain.model.parameters(), closed.model.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [True] * 4


def test_bf16_is_as_by_hand(tmp_path: Path) -> None:
    config: dict[str, Any] = {"accelerate": {"cpu": True, "mixed_precision": "bf16"}}
    runner = closing.make_runner(tmp_path, "lbfgs", resume=False, **config)
    runner.train()

    model = closing.make_model()
    optimizer: Any = closing.OPTIMIZERS["lbfgs"](model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    for _ in range(closing.EPOCHS):
        for input, target in closing.make_batches():

            def closure(input: Tensor = input, target: Tensor = target) -> Tensor:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    output = model(input)
                loss = nn.functional.mse_loss(output.float(), target)
                loss.backward()
                return loss

            optimizer.step(closure)
            schedule.step()

    pairs = zip(runner.unwrapped_model.parameters(), model.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [True] * 4


def test_a_step_that_is_vetoed_moves_nothing_and_counts() -> None:
    weights: list[Tensor] = []

    class Veto(dl.Callback):
        def on_before_step(self, runner: dl.AccelerateRunner) -> None:
            weights.append(next(runner.model.parameters()).detach().clone())
            if runner.global_step == 3:
                runner.skip_step()

    runner = quiet(callbacks=[Veto()])
    runner.train()

    assert runner.global_step == closing.BATCHES
    moved = [not torch.equal(one, two) for one, two in pairwise(weights)]
    assert moved == [index != 3 for index in range(closing.BATCHES - 1)]


def test_a_window_that_is_left_open_is_dropped() -> None:
    options = {"cpu": True, "gradient_accumulation_steps": 3}
    runner = quiet(config={"accelerate": options, "max_epochs": 2})

    class Leaving(Quiet):
        def train(self) -> None:
            with self:
                for _ in self.epochs():
                    for index, batch in enumerate(self.batches()):
                        self.step(closure=partial(self.train_step, batch))
                        if index == 4:
                            break

    runner.__class__ = Leaving
    runner.train()

    assert runner.global_step == 2  # a window of three in each epoch, and two that were dropped
    assert runner.evaluations == 2 * 2 * 3


# What is refused


def test_a_step_without_a_closure_says_how_to_give_one() -> None:
    runner = quiet(lambda m: LBFGS(m.parameters()))

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                with pytest.raises(RunError, match=r"LBFGS evaluates the model itself.*closure="):
                    runner.step(runner.train_step(batch))
                break
            break


def test_an_output_and_a_closure_are_refused() -> None:
    runner = quiet()

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                loss = runner.train_step(batch)
                with pytest.raises(RunError, match="an output or a closure, and here are both"):
                    runner.step(loss, closure=partial(runner.train_step, batch))
                break
            break


def test_a_closure_that_skips_its_batch_is_refused() -> None:
    class Skipping(Quiet):
        def train_step(self, batch: Any) -> Any:
            return None

    runner = quiet()
    runner.__class__ = Skipping

    with pytest.raises(RunError, match="a closure returned None"):
        runner.train()


def test_an_optimizer_that_asks_for_no_gradients_is_refused() -> None:
    class Blind(SGD):
        @torch.no_grad()
        def step(self, closure: Any) -> Any:
            return closure()

    with pytest.raises(RunError, match=r"Blind did not ask for gradients: .*enable_grad"):
        quiet(lambda m: Blind(m.parameters(), lr=0.1)).train()


def test_the_gradient_scaler_is_refused_before_the_first_step() -> None:
    runner = quiet()
    runner.accelerator.scaler = torch.amp.GradScaler("cpu")

    with pytest.raises(ConfigError, match="gradient scaler of fp16 takes no closure"):
        runner.train()
    assert runner.global_step == 0


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_callbacks_that_try_plain_steps_refuse_one_that_evaluates_itself(finder: Any) -> None:
    runner = quiet(lambda m: LBFGS(m.parameters()), callbacks=[finder()])

    with pytest.raises(CallbackError, match="tries plain steps; LBFGS needs a closure"):
        runner.train()
