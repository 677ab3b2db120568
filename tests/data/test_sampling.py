from __future__ import annotations

import random
from itertools import islice, product

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from danling.data.sampling import Sampled, Sequential, Sharding, Shuffled, order_of
from danling.errors import DataError

SIZES = [*range(14), 23, 24, 25]
GEOMETRIES = list(product((1, 2, 3), (1, 2, 3), (True, False)))


def generators():
    """All bits of the generators of this process."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return random.getstate(), numpy, torch.get_rng_state().tolist()


def shards(items, size, world_size, training, drop_last=False, start=0):
    """The (position, items) of every rank's batches."""
    return [
        list(
            Sharding(size, rank, world_size, training, drop_last).batches(
                iter(items[start:]), start, lambda: iter(items)
            )
        )
        for rank in range(world_size)
    ]


class Everything(Sampler):
    """Draws from every generator, and knows the epoch."""

    def __init__(self, length, endless=False):
        self.length = length
        self.endless = endless
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        number = 0
        while self.endless or number < self.length:
            yield random.randrange(100), int(np.random.randint(100)), int(torch.randint(100, ()))
            number += 1


class Sized(Everything):
    def __len__(self):
        return self.length


def test_a_permutation_never_changes():
    order = Shuffled(10, seed=0)

    assert [list(order.items(epoch)) for epoch in (0, 1)] == [
        [3, 2, 6, 8, 0, 1, 9, 4, 5, 7],
        [4, 8, 9, 2, 3, 5, 7, 0, 1, 6],
    ]


@pytest.mark.parametrize(
    "order",
    [
        Shuffled(9, seed=0),
        Shuffled(9, seed=0, length=5),
        Shuffled(9, seed=0, length=20),
        Shuffled(9, seed=0, length=20, replacement=True),
        Shuffled(9000, seed=0),
        Sequential(9),
        Sampled(Sized(9), seed=0),
        Sampled(Sized(9000), seed=0),
    ],
    ids=lambda order: f"{order.name} {order.length}",
)
def test_an_order_begun_in_the_middle_is_the_rest_of_it(order):
    whole = list(order.items(epoch=2))

    starts = range(0, len(whole) + 2, max(1, len(whole) // 10))
    rests = [list(order.items(2, start)) for start in starts]

    assert len(whole) == order.length
    assert rests == [whole[start:] for start in starts]


def test_each_sample_is_in_a_permutation_once_and_in_a_longer_one_as_often_as_in_another():
    order = Shuffled(5, seed=1, length=12)

    items = list(order.items(epoch=0))

    assert sorted(items[:5]) == sorted(items[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(items[10:])) == 2


def test_seed_and_epoch_change_a_permutation_and_nothing_else_does():
    first = list(Shuffled(50, seed=0).items(epoch=0))
    torch.rand(3)

    assert list(Shuffled(50, seed=0).items(epoch=0)) == first
    assert list(Shuffled(50, seed=0).items(epoch=1)) != first
    assert list(Shuffled(50, seed=1).items(epoch=0)) != first


def test_an_empty_dataset_has_an_empty_order():
    assert list(Shuffled(0, seed=0).items(epoch=0)) == []


def test_a_custom_sampler_is_a_function_of_seed_and_epoch_and_leaves_the_generators_alone():
    before = generators()
    items = [list(Sampled(Sized(6), seed).items(epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    after = generators()
    random.random(), np.random.random(), torch.rand(1)

    again = list(Sampled(Sized(6), 0).items(0))

    assert items[0] == again
    assert len({str(item) for item in items}) == 3
    assert after == before


def test_an_endless_sampler_is_read_as_far_as_needed_with_streams_of_its_own():
    sampler = Everything(0, endless=True)
    order = Sampled(sampler, seed=0)

    items = []
    for item in islice(order.items(epoch=4), 10_000):
        random.random(), np.random.random(), torch.rand(1)
        items.append(item)

    assert items == list(islice(Sampled(sampler, seed=0).items(4), 10_000))
    assert order.length is None
    assert sampler.epochs == [4, 4]


def test_a_sampler_s_own_generator_is_seeded_by_the_epoch():
    sampler = WeightedRandomSampler([1.0, 2, 3, 4], 8, generator=torch.Generator().manual_seed(1))
    order = Sampled(sampler, seed=0)

    first, other, again = (list(order.items(epoch)) for epoch in (0, 1, 0))

    assert first == again
    assert first != other


def test_torch_s_samplers_become_pure_orders():
    data = TensorDataset(torch.zeros(12))
    samplers = [
        RandomSampler(data),
        RandomSampler(data, replacement=True, num_samples=7),
        SequentialSampler(data),
        DistributedSampler(data, num_replicas=2, rank=1),
        DistributedSampler(data, num_replicas=2, rank=1, shuffle=False),
        WeightedRandomSampler([1.0], 3),
    ]

    orders = [order_of(sampler, seed=0) for sampler in samplers]

    assert [(order.name, order.length) for order in orders] == [
        ("shuffled", 12),
        ("shuffled with replacement", 7),
        ("sequential", 12),
        ("shuffled", 12),
        ("sequential", 12),
        ("WeightedRandomSampler", 3),
    ]


def test_a_sampler_that_shards_by_itself_is_refused():
    class Own(DistributedSampler):
        pass

    with pytest.raises(DataError, match="Own takes only its own rank's samples"):
        order_of(Own(TensorDataset(torch.zeros(4)), num_replicas=2, rank=0), seed=0)


@pytest.mark.parametrize(("size", "world_size", "training"), GEOMETRIES)
def test_ranks_share_every_sample(size, world_size, training):
    for count in SIZES:
        parts = shards(list(range(count)), size, world_size, training)
        seen = sorted(item for part in parts for _, batch in part for item in batch)
        placed = sorted((position, batch) for part in parts for position, batch in part)

        duplicates = len(seen) - count
        assert sorted(set(seen)) == list(range(count))
        assert [item for _, batch in placed for item in batch][:count] == list(range(count))
        assert duplicates == (-count % world_size if training and count else 0)


@pytest.mark.parametrize(("size", "world_size", "training"), GEOMETRIES)
def test_the_number_of_batches_and_their_positions_are_known_beforehand(size, world_size, training):
    for count, drop_last in product(SIZES, (True, False)):
        parts = shards(list(range(count)), size, world_size, training, drop_last)
        sharding = [
            Sharding(size, rank, world_size, training, drop_last) for rank in range(world_size)
        ]

        assert [len(part) for part in parts] == [rank.count(count) for rank in sharding]
        assert [len(part) for part in parts] == [sharding[0].count(count, r.rank) for r in sharding]
        for rank, part in zip(sharding, parts, strict=True):
            for number, (position, batch) in enumerate(part):
                positions = rank.positions(number * rank.whole, count)
                assert positions == range(position, position + len(batch))


def test_in_training_all_ranks_have_equally_many_batches_of_equally_many_samples():
    for count, (size, world_size, _) in product(SIZES, GEOMETRIES):
        parts = shards(list(range(count)), size, world_size, training=True)

        assert len({tuple(len(batch) for _, batch in part) for part in parts}) == 1


def test_padding_comes_from_the_start_of_the_epoch_s_order():
    parts = shards([7, 5, 3, 1, 9], size=2, world_size=3, training=True)

    assert parts == [[(0, [7, 5])], [(2, [3, 1])], [(4, [9, 7])]]


def test_padding_goes_round_where_there_are_fewer_samples_than_ranks():
    parts = shards([7, 5], size=2, world_size=5, training=True)

    assert parts == [[(0, [7])], [(1, [5])], [(2, [7])], [(3, [5])], [(4, [7])]]


def test_without_padding_a_rank_may_get_nothing():
    parts = shards([7], size=2, world_size=2, training=False)

    assert parts == [[], [(0, [7])]]


def test_a_batch_that_is_not_whole_is_dropped_on_all_ranks():
    parts = shards([7, 5, 3, 1, 9], size=2, world_size=2, training=True, drop_last=True)

    assert parts == [[(0, [7, 5])], [(2, [3, 1])]]


@pytest.mark.parametrize("world_sizes", [(2, 1), (2, 3), (1, 4), (3, 2)])
def test_the_rest_of_an_epoch_is_covered_once_by_other_ranks(world_sizes):
    before, after = world_sizes
    items = list(range(29))
    first = shards(items, 3, before, training=False)
    done = [item for part in first for _, batch in part[:2] for item in batch]

    rest = shards(items, 3, after, training=False, start=6 * before)

    seen = done + [item for part in rest for _, batch in part for item in batch]
    assert sorted(seen) == items
