"""A permutation computed by index is one, whatever its size, and serves any number of ranks."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danling.data.permutation import LARGEST, draw, permute
from danling.data.sampling import STORED, Sharding, Shuffled
from danling.seed import derive

KEYS = st.integers(0, 2**63 - 1)


def computed(population: int, seed: int = 0, length: int | None = None) -> Shuffled:
    """An order that is computed, though it is short enough to be stored."""
    order = Shuffled(population, seed, length)
    order.is_stored = False
    return order


@settings(deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_every_number_is_in_a_permutation_once(population: int, key: int):
    found = permute(torch.arange(population), population, key)

    assert sorted(found.tolist()) == list(range(population))


@settings(deadline=None)
@given(st.integers(1, LARGEST), KEYS, st.data())
def test_a_part_of_a_permutation_of_any_size_is_of_different_numbers_below_it(
    population: int, key: int, data: st.DataObject
):
    start = data.draw(st.integers(0, population - 1))
    indices = torch.arange(start, min(population, start + 50))

    found = permute(indices, population, key).tolist()

    assert len(set(found)) == len(indices)
    assert all(0 <= number < population for number in found)
    assert [int(permute(index.reshape(1), population, key)) for index in indices[:3]] == found[:3]


@settings(deadline=None, max_examples=60)
@given(
    population=st.integers(1, 400),
    size=st.integers(1, 9),
    world_size=st.integers(1, 7),
    training=st.booleans(),
    epoch=st.integers(0, 9),
    data=st.data(),
)
def test_ranks_share_every_sample_of_it_from_any_offset(
    population: int, size: int, world_size: int, training: bool, epoch: int, data: st.DataObject
):
    order = computed(population)
    whole = list(order.items(epoch))
    start = data.draw(st.integers(0, population))

    seen: list[int] = []
    for rank in range(world_size):
        sharding = Sharding(size, rank, world_size, training)
        for position, batch in sharding.batches(
            order.items(epoch, start), start, lambda: order.items(epoch)
        ):
            places = [(position + number) for number in range(len(batch))]
            assert batch[: max(population - position, 0)] == whole[position : position + len(batch)]
            seen += [place for place in places if place < population]

    assert sorted(whole) == list(range(population))
    assert sorted(seen) == list(range(start, population))


def test_an_order_never_changes():
    order = Shuffled(10**8, seed=0)

    assert list(islice(order.items(0), 5)) == FIRST
    assert list(islice(order.items(1, 10**8 - 2), 5)) == LAST


FIRST = [51517981, 79536780, 50563091, 92313140, 3062190]
LAST = [1087849, 99741892]


@pytest.mark.parametrize("start", [0, 12_345_678, 10**8 - 3])
def test_a_hundred_million_samples_take_no_memory_and_begin_anywhere(start: int):
    order = Shuffled(10**8, seed=0)
    whole = list(islice(order.items(3, start - start % 7), 10))

    tracemalloc.start()
    first = next(order.items(3, start))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert first == whole[start % 7]
    assert peak < 10**6


def test_an_order_that_is_computed_goes_through_further_permutations():
    order = computed(5, length=12)
    whole = list(order.items(0))

    assert sorted(whole[:5]) == sorted(whole[5:10]) == list(range(5))
    assert whole[:5] != whole[5:10]
    assert [list(order.items(0, start)) for start in range(13)] == [whole[n:] for n in range(13)]


def test_an_order_with_replacement_is_computed_too():
    order = Shuffled(7, seed=0, length=STORED + 5000, replacement=True)
    whole = list(order.items(0))

    assert not order.is_stored
    assert list(order.items(0, 70_000)) == whole[70_000:]
    counts = torch.bincount(torch.tensor(whole), minlength=7)
    expected = len(whole) / 7
    assert float(((counts - expected) ** 2 / expected).sum()) < 30  # chi square, 6 degrees


@pytest.mark.parametrize(("population", "orders"), [(3, 6), (4, 24), (5, 120)])
def test_keys_choose_among_all_orders(population: int, orders: int):
    found = {
        tuple(permute(torch.arange(population), population, derive(trial)).tolist())
        for trial in range(3000)
    }

    assert len(found) == orders


def test_neighbours_and_keys_have_nothing_in_common():
    population, amount = 10**6, 100_000
    first = permute(torch.arange(amount), population, 1).double()
    other = permute(torch.arange(amount), population, 2).double()

    for left, right in ((first[:-1], first[1:]), (first, other), (first, torch.arange(amount))):
        correlation = torch.corrcoef(torch.stack([left, right.double()]))[0, 1]
        assert abs(float(correlation)) < 5 / amount**0.5
    halves = (first < population / 2).double().mean()
    assert abs(float(halves) - 0.5) < 5 / amount**0.5


@settings(deadline=None)
@given(st.integers(1, LARGEST), KEYS)
def test_drawn_numbers_are_below_the_population(population: int, key: int):
    found = draw(torch.arange(20), population, key)

    assert bool(((found >= 0) & (found < population)).all())
