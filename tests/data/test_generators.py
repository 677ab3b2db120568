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
from danling.data.prepare import Placement, prepare_loader
from danling.seed import generator_state
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


# Wherever a dataset keeps one

AT_MODULE_LEVEL = np.random.default_rng(5)
LATE_AT_MODULE_LEVEL: Any = None


class Kept(Dataset):
    """Draws from a generator that `pick` gives."""

    def __len__(self) -> int:
        return 12

    def pick(self) -> Any:
        raise LookupError

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, draw(self.pick())


class ModuleLevel(Kept):
    def pick(self) -> Any:
        return AT_MODULE_LEVEL


class OfAHelper(Kept):
    def pick(self) -> Any:
        return pick_for_others()


def pick_for_others() -> Any:
    return AT_MODULE_LEVEL


class DefaultArgument(Kept):
    def pick(self, rng: Any = random.Random(5)) -> Any:  # noqa: B008  # as users write it
        return rng


class KeywordDefault(Kept):
    def pick(self, *, rng: Any = random.Random(5)) -> Any:  # noqa: B008
        return rng


class ClassAttribute(Kept):
    rng = np.random.RandomState(5)

    def pick(self) -> Any:
        return self.rng


class Slotted:
    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = torch.Generator()


class InSlots(Kept):
    def __init__(self) -> None:
        self.transform = Slotted()

    def pick(self) -> Any:
        return self.transform.rng


def in_a_closure() -> Dataset[Any]:
    rng = random.Random(5)

    class Closure(Kept):
        def pick(self) -> Any:
            return rng

    return Closure()


class LateAttribute(Kept):
    """Makes its generator in its third batch."""

    rng: Any

    def __init__(self) -> None:
        self.reads = 0

    def pick(self) -> Any:
        self.reads += 1
        if self.reads < 7:
            return random.Random(self.reads)
        if not hasattr(self, "rng"):
            self.rng = np.random.default_rng()
        return self.rng


class LatePlaceholder(LateAttribute):
    """Has None in its place until then."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = None

    def pick(self) -> Any:
        self.reads += 1
        if self.reads >= 7 and self.rng is None:
            self.rng = random.Random()
        return self.rng or random.Random(self.reads)


class LateModuleLevel(LateAttribute):
    def pick(self) -> Any:
        global LATE_AT_MODULE_LEVEL
        self.reads += 1
        if self.reads >= 7 and LATE_AT_MODULE_LEVEL is None:
            LATE_AT_MODULE_LEVEL = random.Random()
        return LATE_AT_MODULE_LEVEL or random.Random(self.reads)


class Renewed(Kept):
    """Replaces its generator in every epoch."""

    def __init__(self) -> None:
        self.rng = random.Random()

    def set_epoch(self, epoch: int) -> None:
        self.rng = random.Random()

    def pick(self) -> Any:
        return self.rng


PLACES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        ModuleLevel,
        OfAHelper,
        DefaultArgument,
        KeywordDefault,
        ClassAttribute,
        InSlots,
        Renewed,
    )
} | {"closure": in_a_closure}
LATE: dict[str, Any] = {
    kind.__name__: kind for kind in (LateAttribute, LatePlaceholder, LateModuleLevel)
}


def read_kept(dataset: Any, epoch: int, start: int = 0) -> list[Any]:
    loader = prepare_loader(
        "train",
        dataset,
        batched=False,
        settings={"batch_size": 2},
        seed=0,
        shuffle=False,
        training=True,
        placement=Placement(torch.device("cpu")),
    )
    return [[part.tolist() for part in batch] for batch in loader.iterate(epoch, start)]


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_a_generator_is_keyed_wherever_it_is_kept(make: Any):
    dataset = make()
    generator = generator_state(dataset.pick())
    before = generator.state()
    whole = [read_kept(dataset, epoch) for epoch in range(2)]
    assert not generator.moved(before)  # it is put back

    draw(make().pick())  # what ran before
    rest = [read_kept(make(), epoch, start=3) for epoch in range(2)]

    assert rest == [epoch[3:] for epoch in whole]
    assert len({value for epoch in whole for batch in epoch for value in batch[1]}) == 24


@pytest.mark.parametrize("make", LATE.values(), ids=LATE)
def test_a_generator_is_keyed_from_the_batch_on_that_made_it(make: Any, monkeypatch: Any):
    runs = []
    for _ in range(2):
        monkeypatch.setattr(f"{__name__}.LATE_AT_MODULE_LEVEL", None)
        runs.append(read_kept(make(), 0))

    assert runs[0] == runs[1]
    assert runs[0][3:] != runs[0][:3]


def test_libraries_are_not_searched_for_what_their_classes_keep():
    class Transform(torch.nn.Identity):
        pass

    own = OwnGenerators(Holder(data=torch.utils.data.TensorDataset(torch.zeros(2))), Transform)

    assert own.states == []


def test_a_cache_that_grows_is_not_searched_for_ever():
    dataset = Holder(cache={}, rng=None)
    own, searches = OwnGenerators(dataset), 0

    for number in range(20):
        dataset.cache[number] = number  # type: ignore[attr-defined]  # it is made late
        if own.changed():
            searches += 1
            assert not own.look()

    assert 1 <= searches <= 3


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
