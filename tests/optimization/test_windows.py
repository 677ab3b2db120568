"""What a window weighs: by batches or by samples, with batches skipped and steps vetoed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import danling as dl
from danling.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from danling.errors import RunError
from danling.optimization.optimization import Optimization
from tests.support.resume_harness import digest, in_process

VOCABULARY, LENGTH = 11, 7
COUNTS = [7, 3, 5, 1, 6, 2, 4, 7, 1, 3]  # the tokens of each batch that are counted


def make_batches(counts: list[int] = COUNTS) -> list[dict[str, Tensor]]:
    """Two rows of tokens a batch, of which a number are counted."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for count in counts:
        tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        targets = torch.randint(VOCABULARY, (2, LENGTH), generator=generator).flatten()
        targets[torch.randperm(2 * LENGTH, generator=generator)[count:]] = -100
        batches.append({"tokens": tokens, "targets": targets.view(2, LENGTH)})
    return batches


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Tanh(), nn.Linear(8, VOCABULARY))


def sum_of_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"]).flatten(0, 1)
    return nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum")


def tokens(batch: dict[str, Tensor]) -> Tensor:
    return (batch["targets"] != -100).sum()


class Language(dl.AccelerateRunner):
    """A model of tokens whose loss is the mean over those of the batch that are counted."""

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        *,
        skips: Callable[[int], bool] = lambda index: False,
        count: Callable[[dict[str, Tensor]], Any] = tokens,
        batches: list[dict[str, Tensor]] | None = None,
        callbacks: Any = (),
        default_callbacks: bool = False,
    ) -> None:
        settings: dict[str, Any] = {"seed": 0, "max_epochs": 1, "log_interval": 1}
        settings |= {"accumulate": "samples"} | (config or {})
        settings["accelerate"] = {"cpu": True, **settings.get("accelerate", {})}
        super().__init__(settings, callbacks=callbacks, default_callbacks=default_callbacks)
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.dataloaders = {"train": make_batches() if batches is None else batches}
        self.skips, self.count = skips, count

    def train_step(self, batch: dict[str, Tensor]) -> Any:
        if self.skips(self.batch_index):
            return None
        count = tokens(batch)
        loss = sum_of_losses(self.model, batch) / count.clamp(min=1)
        return {"loss": loss, "n": self.count(batch)}


class Gradients(dl.Callback):
    """The gradients of each step, and what was logged for it."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []
        self.logged: list[float] = []

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        parameters = runner.unwrapped_model.parameters()
        self.steps.append(
            [torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters]
        )

    def on_log(self, runner: dl.AccelerateRunner, metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            self.logged.append(metrics["train/loss"])


def windows_of(accumulation: int, left: list[int], total: int) -> list[list[int]]:
    """The batches of each window that were not skipped."""
    starts = range(0, total, accumulation)
    return [[i for i in range(start, start + accumulation) if i in left] for start in starts]


def by_hand(
    windows: list[list[int]], batches: list[dict[str, Tensor]]
) -> tuple[list[list[Tensor]], list[float], nn.Module]:
    """Gradients, losses and model of a plain loop in which each window is one big batch."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients, losses = [], []
    for window in windows:
        chosen = [batches[index] for index in window]
        if chosen and (counted := sum(tokens(batch) for batch in chosen)):
            big = {key: torch.cat([batch[key] for batch in chosen]) for key in chosen[0]}
            loss = sum_of_losses(model, big) / counted
            loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    return gradients, losses, model


def assert_close(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


COUNT: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "tensor": tokens,
    "number": lambda batch: int(tokens(batch)),
}


@pytest.mark.parametrize("count", COUNT.values(), ids=COUNT)
@pytest.mark.parametrize("accumulation", [1, 3, 4, 10, 16])
@pytest.mark.parametrize("skipped", [set(), {1, 2, 9}, {0, 1, 2, 3}], ids=["none", "some", "first"])
def test_a_window_that_weighs_samples_is_one_big_batch(accumulation, skipped, count):
    seen = Gradients()
    config = {"accelerate": {"gradient_accumulation_steps": accumulation}}
    runner = Language(config, skips=skipped.__contains__, count=count, callbacks=[seen])
    runner.train()

    left = [index for index in range(len(COUNTS)) if index not in skipped]
    windows = windows_of(accumulation, left, len(COUNTS))
    gradients, losses, model = by_hand(windows, make_batches())
    held = [step for step, window in zip(seen.steps, windows, strict=True) if window]
    assert_close(held, gradients)
    assert seen.logged == pytest.approx(losses, rel=1e-6)
    assert_close([[*runner.model.parameters()]], [[*model.parameters()]])
    total = sum(COUNTS[index] for index in left)
    counts = [sum(COUNTS[index] for index in window) for window in windows if window]
    mean = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / total
    assert runner.results[0]["train"]["loss"] == pytest.approx(mean, rel=1e-6)
    assert runner.global_step == len(windows)


@pytest.mark.parametrize("count", COUNT.values(), ids=COUNT)
def test_a_batch_without_counted_tokens_weighs_nothing(count):
    counts = [0, 4, 0, 0, 2, 0]
    seen = Gradients()
    config = {"accelerate": {"gradient_accumulation_steps": 2}, "max_epochs": 1}
    runner = Language(config, count=count, batches=make_batches(counts), callbacks=[seen])
    runner.train()

    gradients, losses, _ = by_hand([[0, 1], [2, 3], [4, 5]], make_batches(counts))
    assert_close([seen.steps[0]], gradients[:1])
    assert all(not gradient.any() for gradient in seen.steps[1])
    assert seen.logged[0] == pytest.approx(losses[0], rel=1e-6)
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_a_mean_of_nothing_does_not_spoil_the_weights():
    class Dividing(Language):
        def train_step(self, batch: dict[str, Tensor]) -> Any:
            count = int(tokens(batch))
            return {"loss": sum_of_losses(self.model, batch) / count, "n": count}

    config = {"accelerate": {"gradient_accumulation_steps": 2}}
    runner = Dividing(config, batches=make_batches([0, 4, 3, 0]))
    runner.train()

    _, _, model = by_hand([[0, 1], [2, 3]], make_batches([0, 4, 3, 0]))
    assert_close([[*runner.model.parameters()]], [[*model.parameters()]])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_window_of_batches_is_the_mean_of_those_that_were_left(accumulation):
    skipped = {1, 2, 4, 6, 7, 8}
    seen = Gradients()
    options = {"gradient_accumulation_steps": accumulation}
    config = {"accumulate": "batches", "accelerate": options}
    runner = Language(config, skips=skipped.__contains__, callbacks=[seen])
    runner.train()

    model, batches, expected = make_model(), make_batches(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    left = [index for index in range(len(COUNTS)) if index not in skipped]
    for window in windows_of(accumulation, left, len(COUNTS)):
        for index in window:
            loss = sum_of_losses(model, batches[index]) / tokens(batches[index])
            (loss / len(window)).backward()
        if window:
            expected.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
    assert_close([step for step in seen.steps if step[0].ndim], expected)
    assert_close([[*runner.model.parameters()]], [[*model.parameters()]])
    assert runner.global_step == -(-len(COUNTS) // accumulation)


# Steps that move nothing


class Watched(dl.Callback):
    """What moved with each step."""

    def __init__(self, veto: Callable[[dl.AccelerateRunner], bool] | None = None) -> None:
        self.veto = veto
        self.states: list[str] = []
        self.norms: list[float] = []

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        self.norms.append(float(runner.grad_norm))
        if self.veto is not None and self.veto(runner):
            runner.skip_step()

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        parts = [runner.unwrapped_model, runner.optimizer, runner.scheduler]
        self.states.append(digest([part.state_dict() for part in parts]))


class Vetoing(Language):
    """Decays its weights and its rate, and vetoes steps before they are asked for."""

    def __init__(self, *args: Any, vetoed: Collection[int] = (), **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.vetoed = vetoed
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def train_step(self, batch: dict[str, Tensor]) -> Any:
        if self.global_step in self.vetoed and self.batch_index % self.accum_steps == 0:
            self.skip_step()
        return super().train_step(batch)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("where", ["step", "hook", "skipped"])
def test_a_step_that_is_vetoed_moves_nothing_and_counts(where, accumulation):
    vetoed = {1, 2, 4}
    watched = Watched((lambda runner: runner.global_step in vetoed) if where == "hook" else None)
    options = {"gradient_accumulation_steps": accumulation}
    runner = Vetoing(
        {"accelerate": options},
        vetoed=vetoed if where == "step" else (),
        skips=(lambda index: where == "skipped" and index // accumulation in vetoed),
        callbacks=[watched],
    )
    runner.train()

    steps = len(COUNTS) // accumulation
    before = [None, *watched.states]
    still = {index for index in range(steps) if before[index] == watched.states[index]}
    assert still == {index for index in vetoed if index < steps}
    assert runner.global_step == len(watched.states) == steps
    assert runner.scheduler.last_epoch == steps - len(still)
    zero = {index for index, norm in enumerate(watched.norms) if norm == 0}
    assert zero == (still if where == "skipped" else set())


def test_a_vetoed_step_is_as_if_its_window_had_not_been_there():
    left = [index for index in range(len(COUNTS)) if index not in (2, 3, 8, 9)]
    options = {"gradient_accumulation_steps": 2}
    vetoing = Vetoing({"accelerate": options}, vetoed={1, 4})
    vetoing.train()
    plain = Vetoing({"accelerate": options}, batches=[make_batches()[index] for index in left])
    plain.train()

    assert digest(vetoing.model.state_dict()) == digest(plain.model.state_dict())
    assert digest(vetoing.optimizer.state_dict()) == digest(plain.optimizer.state_dict())


def test_a_veto_is_of_one_step_alone():
    watched = Watched(lambda runner: runner.global_step == 3)
    runner = Vetoing(callbacks=[watched])
    runner.train()

    assert len(set(watched.states)) == len(COUNTS) - 1


def test_a_window_that_a_break_drops_takes_its_veto_with_it():
    runner = Vetoing({"accelerate": {"gradient_accumulation_steps": 4}, "max_epochs": 2})
    before = digest(runner.model.state_dict())
    with runner:
        for epoch in runner.epochs():
            for batch in runner.batches():
                if epoch == 0:
                    runner.skip_step()
                runner.step(runner.train_step(batch))
                if epoch == 0:
                    break
            if epoch == 0:
                assert digest(runner.model.state_dict()) == before

    assert runner.scheduler.last_epoch == runner.global_step == 3


def test_a_veto_without_a_window_says_where_it_belongs():
    runner = Vetoing({"max_epochs": 1})
    with runner:
        for _ in runner.epochs():
            with pytest.raises(RunError, match="none is open"):
                runner.skip_step()
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                with pytest.raises(RunError, match=r"before step\(\)"):
                    runner.skip_step()


def test_a_scaler_goes_on_after_a_step_that_was_vetoed():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    # what Accelerate does for fp16, which it refuses on the CPU
    accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimization = Optimization(accelerator, {"": optimizer}, {})
    optimization.prepare(model)
    before = digest(model.state_dict())
    for turn in range(4):
        if turn == 2:
            optimization.open_empty("")  # nothing is left of this window
        else:
            optimization.backward(model(torch.ones(3, 2)).pow(2).mean(), "")
            optimization.open("")
            optimization.vetoed = True
        optimization.step()
        optimization.zero_grad()

    assert digest(model.state_dict()) == before
    assert scaler.get_scale() == 2.0**11  # it has judged three steps
    assert optimization.vetoes == 4


# Killed and resumed


def train(root: Path, kill_at: int | None = None) -> None:
    """Windows of a length that changes with the epoch, weighed, with batches and steps left out."""
    torch.set_num_threads(1)

    class Kill(dl.Callback):
        priority = 1000

        def on_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    config = {
        "project_root": str(root / "experiments"),
        "max_epochs": 3,
        "resume": "auto",
        "accelerate": {"gradient_accumulation_steps": 3},
    }
    watched = Watched(lambda runner: runner.global_step == 6)
    scheduling = GradientAccumulationScheduler({1: 2, 2: 4})
    callbacks = [ModelCheckpoint(every="1 step"), watched, scheduling, Kill()]
    runner = Vetoing(
        config,
        vetoed={2},
        skips=lambda index: index in (1, 4, 5),
        callbacks=callbacks,
        default_callbacks=True,
    )
    runner.train()
    exact = runner.resume_report is None or runner.resume_report["exact"]
    outcome = {
        "parts": digest([runner.model.state_dict(), runner.optimizer.state_dict()]),
        "rate": runner.scheduler.state_dict()["_last_lr"],
        "results": runner.results,
        "steps": runner.global_step,
        "exact": exact,
    }
    (root / "outcome.json").write_text(json.dumps(outcome))


def test_windows_go_on_after_a_kill_as_if_there_had_been_none(tmp_path: Path):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert in_process(train, whole) == 0
    expected = json.loads((whole / "outcome.json").read_text())
    assert expected["steps"] == 4 + 5 + 3

    for step in (3, 7, 10):
        root = tmp_path / str(step)
        root.mkdir()
        assert in_process(train, root, step) == -signal.SIGKILL
        assert in_process(train, root) == 0
        assert json.loads((root / "outcome.json").read_text()) == expected
