"""Parts that are assigned after the runner was prepared: used from the next epoch, or refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import danling as dl
from danling.errors import ConfigError, ResumeError, RunError
from danling.testing import TinyRunner, tiny_data
from tests.runner.test_everything_a_run_holds import outcome
from tests.support.held import CASES, Changes, more_data
from tests.support.resume_harness import in_process
from tests.support.tensors import are_identical


class At(dl.Callback):
    """Does something in a hook of an epoch."""

    def __init__(self, hook: str, epoch: int, action: Callable[[Any], Any]) -> None:
        setattr(self, hook, lambda runner: action(runner) if runner.epoch == epoch else None)


class Watch(dl.Callback):
    """Keeps samples, totals and progress of each batch, and what is logged."""

    priority = 1000

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, float]] = []

    def on_batch_end(self, runner: Any, batch: Any, output: Any) -> None:
        row = (runner.epoch, len(batch[0]), runner.total_steps, runner.progress)
        self.rows.append(row)


def weights(runner: Any) -> list[torch.Tensor]:
    return [value.clone() for value in runner.unwrapped_model.state_dict().values()]


@pytest.mark.parametrize(("hook", "epoch"), [("on_epoch_start", 1), ("on_epoch_end", 1)])
@pytest.mark.parametrize("how", ["assigned", "in place", "loader"])
def test_data_are_used_from_the_epoch_on_and_move_totals(
    hook: str, epoch: int, how: str, caplog: Any
) -> None:
    def change(runner: Any) -> None:
        if how == "assigned":
            runner.datasets = runner.datasets | {"train": tiny_data(28, "train")}
        elif how == "in place":
            runner.datasets["train"] = tiny_data(28, "train")
        else:
            runner.dataloaders = {"train": DataLoader(tiny_data(28, "train"), batch_size=4)}

    watch = Watch()
    runner = TinyRunner({"max_epochs": 3}, callbacks=[watch, At(hook, epoch, change)])
    with caplog.at_level("INFO", "danling"):
        runner.train()

    assert [sum(row[0] == epoch for row in watch.rows) for epoch in range(3)] == [4, 7, 7]
    assert [row[2] for row in watch.rows] == [12] * 4 + [18] * 14
    assert [row[3] for row in watch.rows[4:]] == [step / 18 for step in range(5, 19)]
    assert runner.progress == 1.0
    part = "dataloaders" if how == "loader" else "datasets"
    assert f"from epoch 1 on there are others: {part}['train']" in caplog.text


def test_a_callback_that_is_silent_about_an_epoch_changes_nothing(caplog: Any) -> None:
    with caplog.at_level("INFO", "danling"):
        TinyRunner({"max_epochs": 3}).train()

    assert "there are others" not in caplog.text


def test_a_loop_of_ones_own_assigns_before_its_batches() -> None:
    runner, sizes = TinyRunner(), []
    with runner:
        for epoch in runner.epochs():
            runner.datasets["train"] = tiny_data(16 + 4 * epoch, "train")
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
            sizes.append(runner.batch_index)

    assert sizes == [4, 5]
    assert runner.total_steps == 9


def test_a_criterion_is_used_moved_and_saved() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, output: Any, target: Any) -> Any:
            return self.scale * nn.functional.cross_entropy(output, target)

    criterion = Halved()
    runner = TinyRunner(
        callbacks=[At("on_epoch_start", 1, lambda runner: setattr(runner, "criterion", criterion))]
    )
    runner.train()

    assert "criterion" in runner.state_dict()["stateful"]
    plain = TinyRunner()
    plain.train()
    assert runner.results[0] == plain.results[0]
    assert runner.results[1] != plain.results[1]


@pytest.mark.parametrize("how", ["between", "in a hook"])
def test_an_optimizer_and_its_scheduler_are_stepped_instead(how: str, caplog: Any) -> None:
    def assign(runner: Any) -> None:
        runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.5)
        runner.scheduler = torch.optim.lr_scheduler.ExponentialLR(runner.optimizer, 0.5)

    if how == "between":
        runner = TinyRunner({"max_epochs": 1})
        runner.train()
        assign(runner)
        runner.config.max_epochs = 2
    else:
        runner = TinyRunner(callbacks=[At("on_epoch_start", 1, assign)])
    with caplog.at_level("INFO", "danling"):
        runner.train()

    assert "from epoch 1 on there are others: optimizer, scheduler" in caplog.text
    assert runner.optimizer.param_groups[0]["lr"] == 0.5 * 0.5**4
    model, plain = by_hand(1), TinyRunner({"max_epochs": 1})
    plain.train()
    model.load_state_dict(plain.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in plain.loader("train").iterate(1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5
    assert are_identical(weights(runner), model.state_dict().values())


def by_hand(seed: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 3)


def test_a_scheduler_of_the_optimizer_before_is_refused() -> None:
    def assign(runner: Any) -> None:
        runner.scheduler = torch.optim.lr_scheduler.ExponentialLR(runner.optimizer, 0.5)
        runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.5)

    with pytest.raises(ConfigError, match="was made for another optimizer"):
        TinyRunner(callbacks=[At("on_epoch_start", 1, assign)]).train()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_is_trained_as_if_the_runner_had_been_made_with_it(precision: str) -> None:
    config = {"max_epochs": 1, "accelerate": {"cpu": True, "mixed_precision": precision}}
    runner = TinyRunner(config)
    runner.evaluate("val")
    runner.model = by_hand(3)
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    evaluated = runner.evaluate("val")
    runner.train()

    other = TinyRunner(config)
    other.model = by_hand(3)
    other.optimizer = torch.optim.SGD(other.model.parameters(), lr=0.1)
    assert other.evaluate("val") == evaluated
    other.train()
    assert are_identical(weights(runner), weights(other))
    assert runner.results == other.results


def test_precision_is_given_to_a_model_once_however_often_parts_change() -> None:
    def assign(runner: Any) -> None:
        runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)

    config = {"max_epochs": 1, "accelerate": {"cpu": True, "mixed_precision": "bf16"}}
    runner = TinyRunner(config)
    runner.prepare()
    for _ in range(3):
        assign(runner)
        runner.prepare()

    assert runner.model._original_forward.__func__ is nn.Linear.forward


def test_a_wrapper_around_the_model_is_the_model(caplog: Any) -> None:
    torch.compiler.set_stance("force_eager")

    class Compile(dl.Callback):
        def on_setup(self, runner: Any) -> None:
            runner.model = torch.compile(runner.model, backend="eager")

    runner = TinyRunner(callbacks=[Compile()])
    with caplog.at_level("INFO", "danling"):
        runner.train()

    plain = TinyRunner()
    plain.train()
    assert "there are others" not in caplog.text
    assert are_identical(weights(runner), weights(plain))


PARTS: dict[str, Callable[[Any], Any]] = {
    "model": lambda runner: nn.Linear(4, 3),
    "criterion": lambda runner: nn.CrossEntropyLoss(),
    "optimizer": lambda runner: torch.optim.SGD(runner.model.parameters(), lr=1.0),
    "scheduler": lambda runner: torch.optim.lr_scheduler.StepLR(runner.optimizer, 1),
}


@pytest.mark.parametrize("hook", ["on_batch_start", "on_step", "on_batch_end"])
@pytest.mark.parametrize("part", PARTS)
def test_between_batches_no_part_is_assigned(part: str, hook: str) -> None:
    class Early(dl.Callback):
        pass

    def assign(runner: Any, *_: Any) -> None:
        setattr(runner, part, PARTS[part](runner))

    callback = Early()
    setattr(callback, hook, assign)
    runner = TinyRunner(callbacks=[callback])
    before = {name: getattr(runner, name) for name in PARTS}
    with pytest.raises(RunError, match=f"{part} cannot be assigned between the batches.*on_epoch"):
        runner.train()

    assert all(getattr(runner, name) is value for name, value in before.items())


def test_what_a_part_is_already_may_be_assigned_at_any_time() -> None:
    class Same(dl.Callback):
        def on_step(self, runner: Any) -> None:
            runner.model, runner.optimizer = runner.model, runner.optimizer

    runner = TinyRunner(callbacks=[Same()])
    runner.train()

    assert runner.global_step == 8


# What a resumed run needs


def test_data_that_nobody_assigns_again_are_named_with_what_to_do(tmp_path: Path) -> None:
    def lost(runner: Any) -> None:
        runner.callbacks.append(Changes(more_data, again=False))

    CASES["lost"] = lost
    try:
        with pytest.raises(AssertionError):
            outcome(tmp_path / "resumed", "lost", 10)

        def resume() -> None:
            from tests.support.held import Held

            with pytest.raises(ResumeError, match=r"len\(dataset\) 24 -> 16") as caught:
                Held(tmp_path / "resumed", "lost").train()
            assert [note for note in caught.value.__notes__ if "load_state_dict" in note] == [
                "datasets['train'] was assigned while the run trained, for epoch 1, and nobody has "
                "done it again: the callback that did can do so in load_state_dict(), or do it "
                "before the run opens"
            ]

        assert in_process(resume) == 0
    finally:
        del CASES["lost"]


# Epochs of different lengths


class Growing(Sampler[int]):
    """Gives more samples in each epoch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.asked: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.asked.append(epoch)

    def __len__(self) -> int:
        return 8 + 4 * self.epoch

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(40), len(self)))


def test_a_sampler_is_asked_for_its_length_after_it_was_told_the_epoch() -> None:
    watch, sampler = Watch(), Growing()
    runner = TinyRunner({"max_epochs": 3}, callbacks=[watch])
    loader = DataLoader(tiny_data(40, "train"), batch_size=4, sampler=sampler)
    runner.dataloaders = {"train": loader}
    runner.train()

    assert [sum(row[0] == epoch for row in watch.rows) for epoch in range(3)] == [2, 3, 4]
    assert [row[2] for row in watch.rows] == [9] * 9
    assert [row[3] for row in watch.rows] == [step / 9 for step in range(1, 10)]
    assert runner.total_steps == 9
    assert not math.isnan(runner.progress)


def test_so_it_is_where_the_rest_of_an_epoch_is_left(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(40.0)[:, None].repeat(1, 4), torch.arange(40) % 3)

    def make(**config: Any) -> TinyRunner:
        settings = {"max_epochs": 3, "project_root": str(tmp_path), "resume": "auto"}
        runner = TinyRunner(settings | config, default_callbacks=True)
        runner.dataloaders = {"train": DataLoader(data, batch_size=4, sampler=Growing())}
        return runner

    class Stop(dl.Callback):
        def on_step(self, runner: Any) -> None:
            if runner.global_step == 3:
                runner.stop("a test of the rest of an epoch")

    first = make(poll_interval=1)
    first.callbacks.append(Stop())
    first.train()
    watch = Watch()
    runner = make(resume=str(first.dir))
    runner.callbacks.append(watch)
    runner.train()

    assert first.global_step == 3
    assert runner.global_step == 9
    assert [row[2] for row in watch.rows] == [9] * 6
    whole = make(project_root=str(tmp_path / "whole"))
    whole.train()
    assert are_identical(weights(runner), weights(whole))
