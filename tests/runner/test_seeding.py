"""One seeding per process: a runner goes on with what its own config has seeded."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import danling as dl
from danling.testing import TinyRunner, tiny_data


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def seeded(skip: int) -> list[float]:
    """What the streams of seed 0 give after so many draws."""
    dl.seed_everything(0)
    for _ in range(skip):
        draws()
    return draws()


def make(config: Any) -> dl.AccelerateRunner:
    return dl.AccelerateRunner(config, default_callbacks=False)


def test_what_was_seeded_with_the_config_is_not_seeded_again() -> None:
    config = dl.Config(seed=0)
    dl.seed_everything(config)
    draws()
    make(config)
    after = draws()
    make(config)
    again = draws()

    assert after == seeded(1)
    assert again == seeded(0)


OTHERS: dict[str, Any] = {
    "another config": lambda config: make(dl.Config(seed=0)),
    "a mapping": lambda config: make({"seed": 0}),
    "a seeding since": lambda config: (dl.seed_everything(5), make(config)),
    "a runner since": lambda config: (make({"seed": 5}), make(config)),
    "another seed": lambda config: (config.update(seed=0), make(config)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_all_others_seed(case: str) -> None:
    config = dl.Config(seed=1 if case == "another seed" else 0)
    dl.seed_everything(config)
    draws()
    OTHERS[case](config)

    assert draws() == seeded(0)


def test_a_seed_that_was_drawn_is_that_of_the_run() -> None:
    config = dl.Config()
    seed = dl.seed_everything(config)
    draws()
    runner = make(config)
    after = draws()
    dl.seed_everything(seed)
    draws()

    assert after == draws()
    assert runner.config.seed == seed
    assert runner.config.drawn_seed


def test_dropout_begins_with_other_numbers_than_the_weights() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.rand(3)
            self.layer = nn.Linear(4, 3)
            self.drawn: list[torch.Tensor] = []

        def forward(self, inputs: torch.Tensor) -> Any:
            if self.training:
                self.drawn.append(torch.rand(3))
            return self.layer(inputs)

    config = dl.Config(seed=0, max_epochs=1, deterministic=True)
    dl.seed_everything(config)
    model = Noisy()
    runner = dl.AccelerateRunner(
        config,
        model=model,
        criterion=nn.functional.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        datasets={"train": tiny_data(8, "train")},
        default_callbacks=False,
    )
    assert torch.are_deterministic_algorithms_enabled()
    runner.train()

    dl.seed_everything(0)
    Noisy()
    assert torch.equal(model.drawn[0], torch.rand(3))
    assert not torch.equal(model.drawn[0], model.first)
    TinyRunner()  # puts the flags back


def test_a_runner_in_a_callback_that_seeds_as_the_open_training_did_leaves_it_alone() -> None:
    drawn: dict[bool, list[float]] = {}

    class Second(dl.Callback):
        def on_step(self, runner: Any) -> None:
            if runner.global_step == 2:
                make(dl.Config(seed=0))

    class Draws(dl.Callback):
        def __init__(self, with_second: bool) -> None:
            self.values = drawn.setdefault(with_second, [])

        def on_batch_start(self, runner: Any, batch: Any) -> None:
            self.values.append(float(torch.rand(())))

    for with_second in (False, True):
        TinyRunner(callbacks=[Draws(with_second), *([Second()] if with_second else [])]).train()

    assert drawn[False] == drawn[True]
