"""A dataset pays for keying when it draws, and its batches are the same as if it always had."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from danling.data.loader import Loader
from danling.data.prepare import Placement, prepare_loader

BATCHES, SIZE = 720, 2
LATE = 700  # the batch from which on a dataset draws

DRAWS: dict[str, Any] = {
    "python": random.random,
    "python gauss": lambda: random.gauss(0, 1),
    "numpy": np.random.random,
    "numpy gauss": np.random.standard_normal,
    "torch": lambda: torch.rand(()).item(),
    "torch normal": lambda: torch.randn(()).item(),
    "all": lambda: random.random() + np.random.random() + torch.rand(()).item(),
}


class Drawing(Dataset):
    """Draws in the samples from a certain index on."""

    def __init__(self, kind: str, first: int = 0, length: int = BATCHES * SIZE) -> None:
        self.kind = kind
        self.first = first
        self.length = length
        self.own = np.random.default_rng(0)
        self.reads = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.reads += 1
        if index < self.first:
            return index, 0.0
        return index, float(self.own.random() if self.kind == "own" else DRAWS[self.kind]())


def loader_of(dataset: Any, *, batch_size: int = SIZE, **settings: Any) -> Loader:
    return prepare_loader(
        "train",
        dataset,
        batched=False,
        settings={"batch_size": batch_size, "shuffle": False, **settings},
        seed=3,
        shuffle=False,
        training=True,
        placement=Placement(torch.device("cpu")),
    )


def read(loader: Loader, epoch: int = 0, start: int = 0) -> list[Any]:
    return [[part.tolist() for part in batch] for batch in loader.iterate(epoch, start)]


@pytest.mark.parametrize("kind", [*DRAWS, "own"])
def test_what_is_drawn_late_is_the_same_as_if_every_batch_was_keyed(kind: str):
    class Random(Drawing):
        deterministic = False

    always = read(loader_of(Random(kind, LATE * SIZE)))

    found_out = read(loader_of(Drawing(kind, LATE * SIZE)))

    assert found_out == always
    assert len({value for batch in found_out[LATE:] for value in batch[1]}) == 20 * SIZE


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("first", [0, LATE * SIZE])
@pytest.mark.parametrize("kind", ["all", "own"])
def test_workers_find_out_by_themselves(kind: str, first: int):
    alone = read(loader_of(Drawing(kind, first)))

    for workers in (1, 3):
        assert read(loader_of(Drawing(kind, first), num_workers=workers)) == alone


@pytest.mark.parametrize("kind", ["all", "numpy gauss", "own"])
def test_an_epoch_begun_at_any_batch_is_the_rest_of_it(kind: str):
    length, first = 40 * SIZE, 33 * SIZE
    whole = read(loader_of(Drawing(kind, first, length)), epoch=1)

    for start in range(41):
        torch.rand(1), random.gauss(0, 1), np.random.standard_normal()
        assert read(loader_of(Drawing(kind, first, length)), 1, start) == whole[start:]


def test_only_the_first_batch_that_draws_is_read_twice():
    dataset = Drawing("all", LATE * SIZE)

    read(loader_of(dataset))

    assert dataset.reads == (BATCHES + 1) * SIZE


@pytest.mark.parametrize("kind", DRAWS)
def test_the_generators_of_the_process_are_as_they_were(kind: str):
    def drawn() -> list[float]:
        return [draw() for draw in DRAWS.values()]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.standard_normal(), torch.randn(())
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.standard_normal(), torch.randn(())

    read(loader_of(Drawing(kind, 10, length=40)))

    assert drawn() == expected


def test_a_gaussian_that_waits_in_numpy_is_no_part_of_a_batch():
    """`randn` makes numbers in pairs: the second moves no Mersenne Twister when it is taken."""
    quiet = read(loader_of(Drawing("numpy gauss", 0, 2), batch_size=1))
    np.random.standard_normal()  # its second number waits

    assert read(loader_of(Drawing("numpy gauss", 0, 2), batch_size=1)) == quiet


def test_a_read_that_draws_and_fails_leaves_the_generators_alone():
    class Broken(Drawing):
        def __getitem__(self, index: int) -> Any:
            super().__getitem__(index)
            raise KeyError("broken")

    before = random.getstate(), torch.get_rng_state().tolist()

    with pytest.raises(KeyError, match="broken"):
        read(loader_of(Broken("all")))

    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def test_another_bit_generator_of_numpy_is_watched_too():
    before = np.random.get_bit_generator()  # type: ignore[attr-defined]  # it is public
    np.random.set_bit_generator(np.random.MT19937(1))  # type: ignore[attr-defined]  # likewise
    try:
        first, again = (read(loader_of(Drawing("numpy", 4, 40))) for _ in range(2))
    finally:
        np.random.set_bit_generator(before)  # type: ignore[attr-defined]  # likewise

    assert first == again == read(loader_of(Drawing("numpy", 4, 40)))


# What it costs


def calls_per_batch(dataset: Any, **settings: Any) -> float:
    """The calls of this library's functions in a steady batch."""
    counts: list[Counter[str]] = []
    for length in (320, 640):
        dataset.length = length
        loader, calls = loader_of(dataset, **settings), Counter[str]()
        list(loader.iterate(0))

        def see(frame: Any, event: str, _: object, calls: Counter[str] = calls) -> None:
            if event == "call" and "/danling/" in frame.f_code.co_filename:
                calls[frame.f_code.co_qualname] += 1

        sys.setprofile(see)
        try:
            for _ in loader.iterate(1):
                pass
        finally:
            sys.setprofile(None)
        counts.append(calls)
    return (counts[1].total() - counts[0].total()) / (320 / SIZE)


def bytecodes_per_batch(dataset: Any) -> float:
    totals = []
    for length in (320, 640):
        dataset.length = length
        loader, total = loader_of(dataset), 0
        list(loader.iterate(0))

        def see(frame: Any, event: str, _: object) -> Any:
            nonlocal total
            if "/danling/" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            total += event == "opcode"
            return see

        before = sys.gettrace()
        sys.settrace(see)
        try:
            for _ in loader.iterate(1):
                pass
        finally:
            sys.settrace(before)
        totals.append(total)
    return (totals[1] - totals[0]) / (320 / SIZE)


class Quiet(Drawing):
    def __init__(self) -> None:
        super().__init__("all", first=10**9)
        del self.own

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, 0.0


class Always(Quiet):
    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random()


class Known(Quiet):
    deterministic = True


def test_a_batch_that_draws_nothing_costs_few_calls():
    assert calls_per_batch(Quiet()) <= 18
    assert calls_per_batch(Known()) <= 18


def test_a_batch_that_draws_costs_few_more():
    assert calls_per_batch(Always()) <= 33


def test_a_batch_is_few_bytecodes():
    assert bytecodes_per_batch(Quiet()) <= 440
    assert bytecodes_per_batch(Always()) <= 770


def test_keyed_workers_cost_the_main_process_nothing():
    assert calls_per_batch(Always(), num_workers=1) <= calls_per_batch(Quiet(), num_workers=1)
    assert calls_per_batch(Always(), num_workers=1) <= 3


def test_one_process_reads_with_fewer_calls_than_the_loader_of_pytorch():
    calls = []
    for batches in (loader_of(Quiet()).iterate(0), iter(DataLoader(Quiet(), SIZE))):
        counted = 0

        def see(frame: Any, event: str, _: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        next(batches)
        sys.setprofile(see)
        try:
            for _ in range(100):
                next(batches)
        finally:
            sys.setprofile(None)
        calls.append(counted)
    assert calls[0] <= 1.5 * calls[1]
