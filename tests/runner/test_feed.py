from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import danling as dl
from danling.testing import TinyRunner

Batch = tuple[torch.Tensor, torch.Tensor]


def make_batches(amount: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(2, 4, generator=generator), torch.randint(0, 3, (2,), generator=generator))
        for _ in range(amount)
    ]


class Counted:
    """Batches that know how often they were asked for one, with or without a length."""

    def __init__(self, amount: int) -> None:
        self.batches, self.asked = make_batches(amount), 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.asked += 1
            yield batch
        self.asked += 1


class Sized(Counted):
    def __len__(self) -> int:
        return len(self.batches)


class Fetches(dl.Callback):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_fetch_start(self, runner: dl.AccelerateRunner) -> None:
        self.events.append(("start", runner.batch_index))

    def on_fetch_end(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.events.append(("end", runner.batch_index))

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.events.append(("step", runner.batch_index))


def train(source: Any, *callbacks: dl.Callback, **config: Any) -> TinyRunner:
    runner = TinyRunner(
        {"max_epochs": 1, **config}, callbacks=list(callbacks), default_callbacks=False
    )
    runner.datasets, runner.dataloaders = {}, {"train": source}
    runner.train()
    return runner


def test_a_length_that_is_only_claimed_does_not_end_an_epoch():
    source = Sized(3)

    runner = train(source)

    assert runner.global_step == 3
    assert source.asked == 4  # a claimed length is not believed


def test_the_end_of_an_unknown_length_is_found_by_asking():
    source, fetches = Counted(3), Fetches()

    train(source, fetches)

    assert source.asked == 4
    assert fetches.events[-2:] == [("step", 2), ("start", 3)]


@pytest.mark.parametrize("kind", [Sized, list])
def test_each_fetch_is_told_before_and_after(kind):
    source, fetches = Sized(2) if kind is Sized else make_batches(2), Fetches()

    train(source, fetches)

    expected = [(event, index) for index in range(2) for event in ("start", "end", "step")]
    assert fetches.events == expected + ([("start", 2)] if kind is Sized else [])


def test_with_accumulation_the_short_window_at_the_end_makes_a_step_too():
    runner = train(make_batches(5), accelerate={"cpu": True, "gradient_accumulation_steps": 2})

    assert runner.global_step == 3
