"""Generators that datasets and samplers keep for themselves: found, seeded, put back."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from danling.callbacks import ModelCheckpoint
from danling.data.generators import OwnGenerators, own_generators
from tests.support.resume_runs import STEPS, Noisy, Runner, failing, log, make_runner, weights

KINDS = {
    "random.Random": lambda: random.Random(3),
    "numpy Generator": lambda: np.random.default_rng(3),
    "numpy Philox": lambda: np.random.Generator(np.random.Philox(3)),
    "numpy RandomState": lambda: np.random.RandomState(3),
    "torch": lambda: torch.Generator().manual_seed(3),
}


def draw(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        return float(torch.rand(1, generator=generator))
    return float(generator.random())


class Holder:
    inner: Any
    rng: Any

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_generator_draws_what_its_key_says(make: Any):
    generator = make()
    own = OwnGenerators([generator])

    drawn = []
    for key in (7, 8, 7):
        own.seed(key)
        drawn.append(draw(generator))

    assert drawn[0] == drawn[2] != drawn[1]


def test_generators_of_one_kind_draw_different_numbers():
    pair = [random.Random(), random.Random()]

    OwnGenerators(pair).seed(7)

    assert pair[0].random() != pair[1].random()


def test_they_are_found_wherever_they_are_kept():
    kept = [make() for make in KINDS.values()]
    first, second, third, fourth, fifth = kept
    bound = Holder(generator=third).__init__  # type: ignore[misc]  # any method will do
    dataset = Holder(
        rng=first,
        inner=Holder(transforms=[Holder(deep={"rng": second}), bound]),
        collate=functools.partial(draw, fourth),
        pair=(fifth, fifth),
    )
    dataset.inner.parent = dataset  # a cycle

    assert {id(found) for found in own_generators(dataset)} == {id(each) for each in kept}


def test_those_of_the_process_and_what_is_far_away_are_left_alone():
    dataset = Holder(
        python=random._inst,
        numpy=np.random.mtrand._rand,
        torch=torch.default_generator,
        system=random.SystemRandom(),
        million=[random.Random()] * 1000,
        model=torch.nn.Linear(1, 1),
    )

    assert own_generators(dataset) == []
    assert own_generators(Holder(data=Noisy()), besides=(Dataset,)) == []


# In a run


class Augmented(Noisy):
    """Disturbs its samples with generators of its own, as albumentations does."""

    def __init__(self) -> None:
        super().__init__()
        self.transforms = [Holder(rng=np.random.default_rng(1)), Holder(rng=random.Random(1))]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, target = super().__getitem__(index)
        return inputs + sum([draw(each.rng) for each in self.transforms]), target


class Late(Augmented):
    """Makes its generators when they are first used, by each worker anew."""

    def __init__(self) -> None:
        super().__init__()
        self.transforms = []

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.transforms:
            self.transforms = [Holder(rng=np.random.default_rng())]
        return super().__getitem__(index)


class Shuffler(Sampler[int]):
    """Shuffles with a generator of its own."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.rng = np.random.RandomState(0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(self.length).tolist())


class Stream:
    """Gives batches that it disturbs by itself; it can only be read from its start."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(STEPS):
            yield torch.full((4, 4), self.rng.random()), torch.full((4, 1), float(number))


def run(data: str, *, workers: int = 0, fails_at: int | None = None, **config: Any) -> Runner:
    callbacks = [ModelCheckpoint("1 step"), *([failing(fails_at)] if fails_at else [])]
    runner = make_runner(callbacks, **config)
    if data in ("dataset", "late"):
        runner.datasets["train"] = Augmented() if data == "dataset" else Late()
        runner.config.dataloader = {"batch_size": 4, "train": {"num_workers": workers}}
    elif data == "sampler":
        del runner.datasets["train"]
        dataset = Noisy()
        runner.dataloaders = {"train": DataLoader(dataset, 4, sampler=Shuffler(len(dataset)))}
    else:
        del runner.datasets["train"]
        runner.dataloaders = {"train": Stream()}
        runner.config.dataloader = {"batch_size": 4, "resume": "replay"}
    with pytest.raises(RuntimeError, match="boom") if fails_at else nullcontext():
        runner.train()
    return runner


@pytest.mark.parametrize(
    ("data", "workers"),
    [
        ("dataset", 0),
        ("late", 2),
        ("sampler", 0),
        pytest.param("dataset", 2, marks=pytest.mark.exhaustive),
        pytest.param("late", 0, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_goes_on_exactly_though_its_data_draws_by_itself(data: str, workers: int):
    first = run(data, workers=workers, fails_at=STEPS + 3)

    again = run(data, resume=str(first.dir))

    whole = run(data)
    assert again.resume_report is not None
    assert again.resume_report["exact"]
    assert again.resume_report["global_step"] == STEPS + 2
    assert weights(again) == weights(whole)
    assert again.results == whole.results


def test_what_a_stream_draws_by_itself_is_a_doubt():
    first = run("stream", fails_at=STEPS + 3)

    again = run("stream", resume=str(first.dir))

    assert again.resume_report is not None
    assert again.resume_report["reasons"] == [
        "what Stream drew from a random generator of its own is not restored"
    ]
    assert "not exactly, since what Stream drew" in log(again)
    assert weights(again) != weights(run("stream"))
