from __future__ import annotations

import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from danling.data.prepare import Placement, prepare_loader, split_settings
from danling.errors import DataError

CPU = Placement(torch.device("cpu"))
WORKERS = {
    "0": {},
    "2": {"num_workers": 2},
    "2 persistent": {"num_workers": 2, "persistent_workers": True},
    "1 with prefetch": {"num_workers": 1, "prefetch_factor": 4},
}


class Augmented(Dataset):
    """Samples that are different every time, drawn from every generator."""

    def __init__(self, length=21):
        self.length = length
        self.epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = random.random(), np.random.standard_normal(), torch.rand(()).item()
        return index, self.epoch, *noise


class Counted(TensorDataset):
    """Counts what is read."""

    def __init__(self, length):
        super().__init__(torch.arange(length))
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return index


class Count(IterableDataset):
    """Shares its numbers among the workers, and adds what it draws."""

    def __init__(self, length=20):
        self.length = length
        self.epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start = random.random()
        for number in range(first, self.length, step):
            yield number, self.epoch, start, np.random.random(), torch.rand(()).item()


class Batches:
    """An iterable that is no list, and draws."""

    def __init__(self, length=10):
        self.length = length

    def __iter__(self):
        for number in range(self.length):
            yield number, random.random(), float(np.random.random()), torch.rand(()).item()


def noisy_collate(samples):
    return [tuple(sample) for sample in samples], torch.rand(()).item(), random.random()


def mark_worker(worker_id):
    worker: Any = get_worker_info()
    worker.dataset.length = 8


def loader_of(source, *, batched=False, training=True, shuffle=True, place=CPU, seed=0, **settings):
    return prepare_loader(
        "train",
        source,
        batched=batched,
        settings={} if batched else {"batch_size": 4, **settings},
        seed=seed,
        shuffle=shuffle,
        training=training,
        placement=place,
    )


def plain(batch):
    """A batch of values that `==` compares."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, list | tuple):
        return [plain(part) for part in batch]
    return batch


def read(loader, epoch, start=0):
    return [plain(batch) for batch in loader.iterate(epoch, start)]


def ids(loader, epoch, start=0):
    return [batch[0] for batch in read(loader, epoch, start)]


def generators():
    """All bits of the generators of this process."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return random.getstate(), numpy, torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def expected():
    """Three epochs of the augmented dataset, read without workers."""
    loader = loader_of(Augmented())
    return [read(loader, epoch) for epoch in range(3)]


# Order and randomness


def test_each_epoch_has_every_sample_in_an_order_and_with_noise_of_its_own(expected):
    seen = [sorted(index for batch in epoch for index in batch[0]) for epoch in expected]
    orders = {str([batch[0] for batch in epoch]) for epoch in expected}
    noise = [
        value for epoch in expected for batch in epoch for column in batch[2:] for value in column
    ]

    assert seen == [list(range(21))] * 3
    assert len(orders) == 3
    assert len(set(noise)) == len(noise) == 3 * 3 * 21
    assert [{number for batch in epoch for number in batch[1]} for epoch in expected] == [
        {0},
        {1},
        {2},
    ]


@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
def test_the_number_of_workers_changes_nothing(expected, workers):
    loader = loader_of(Augmented(), **workers)

    assert [read(loader, epoch) for epoch in range(3)] == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_way_workers_are_started_changes_nothing(expected, method):
    loader = loader_of(Augmented(), num_workers=1, multiprocessing_context=method)

    assert read(loader, 1) == expected[1]


def test_what_ran_before_changes_nothing(expected):
    random.random(), np.random.random(), torch.rand(5)
    loader = loader_of(Augmented())

    assert [read(loader, epoch) for epoch in (2, 0)] == [expected[2], expected[0]]


def test_the_seed_and_the_split_change_order_and_noise(expected):
    others = [
        read(loader_of(Augmented(), seed=1), 0),
        [
            plain(batch)
            for batch in prepare_loader(
                "other",
                Augmented(),
                batched=False,
                settings={"batch_size": 4},
                seed=0,
                shuffle=True,
                training=True,
                placement=CPU,
            ).iterate(0)
        ],
    ]

    assert [other[0][0] == expected[0][0][0] for other in others] == [False, False]
    assert [other[0][2] == expected[0][0][2] for other in others] == [False, False]


@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
def test_an_epoch_begun_at_any_batch_is_the_rest_of_it(expected, workers):
    every = range(7) if not workers else (0, 3, 6)
    loader = loader_of(Augmented(), **workers)

    rests = [read(loader, 1, start) for start in every]

    assert rests == [expected[1][start:] for start in every]


def test_an_epoch_that_is_left_does_not_disturb_the_next(expected):
    loader = loader_of(Augmented(), num_workers=2, persistent_workers=True)

    assert [plain(batch) for batch in islice(loader.iterate(0), 1)] == expected[0][:1]

    assert read(loader, 1) == expected[1]


def test_collating_draws_the_same_again_too():
    def run(**workers):
        return read(
            loader_of(TensorDataset(torch.arange(9)), collate_fn=noisy_collate, **workers), 0
        )

    first = run()

    assert run(num_workers=2) == first
    assert len({str(batch[1:]) for batch in first}) == 3


SOURCES = {
    "dataset": (Augmented(), False, {}),
    "dataset and workers": (Augmented(), False, {"num_workers": 1}),
    "tensors": (TensorDataset(torch.arange(8)), False, {}),
    "weighted": (
        DataLoader(Augmented(), 3, sampler=WeightedRandomSampler([1.0] * 21, 9)),
        True,
        {},
    ),
    "iterable dataset": (Count(), False, {}),
    "iterable dataset and workers": (Count(), False, {"num_workers": 1}),
    "iterable": (Batches(), True, {}),
    "list": ([1, 2, 3], True, {}),
}


@pytest.mark.parametrize(("source", "batched", "settings"), SOURCES.values(), ids=SOURCES)
def test_nothing_is_drawn_from_the_generators_of_this_process(source, batched, settings):
    np.random.standard_normal()
    before = generators()

    loader = loader_of(source, batched=batched, **settings)
    for epoch in range(2):
        for _ in loader.iterate(epoch):
            assert generators() == before

    assert generators() == before


def test_going_on_at_batch_ten_thousand_reads_no_skipped_sample():
    dataset = Counted(50_000)
    loader = loader_of(dataset)

    first = next(iter(loader.iterate(2, 10_000)))

    assert dataset.reads == first.tolist()


# What users hand over


def test_a_data_loader_is_taken_apart():
    given = DataLoader(
        Augmented(), 5, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1)
    )
    loader = loader_of(given, batched=True)

    assert (loader.kind, loader.batch_size, loader.length, loader.samples) == ("keyed", 5, 4, 21)
    assert read(loader, 0) == read(loader_of(Augmented(), batch_size=5, drop_last=True), 0)


def test_a_data_loader_in_place_of_a_dataset_is_taken_apart_too():
    given = DataLoader(Augmented(), 5)

    assert ids(loader_of(given), 0)[0] == [0, 1, 2, 3, 4]


def test_a_weighted_sampler_draws_by_epoch():
    weights = [0.0] * 10 + [1.0] * 11
    given = DataLoader(Augmented(), 4, sampler=WeightedRandomSampler(weights, 12))
    loader = loader_of(given, batched=True)

    epochs = [ids(loader, epoch) for epoch in (0, 1, 0)]

    assert epochs[0] == epochs[2] != epochs[1]
    assert min(index for batch in epochs[0] for index in batch) >= 10
    assert [ids(loader, 1, start) for start in range(4)] == [epochs[1][n:] for n in range(4)]


def test_a_custom_batch_sampler_makes_the_batches_and_hears_of_the_epoch():
    class Growing(BatchSampler):
        def __init__(self):
            super().__init__(SequentialSampler(range(9)), 1, False)
            self.epoch = -1

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            yield from ([self.epoch], [1, 2], [3, 4, 5], random.sample(range(9), 2))

        def __len__(self):
            return 4

    loader = loader_of(DataLoader(Augmented(), batch_sampler=Growing()), batched=True)

    epochs = [ids(loader, epoch) for epoch in (0, 7, 7)]

    assert [epoch[:3] for epoch in epochs] == [[[n], [1, 2], [3, 4, 5]] for n in (0, 7, 7)]
    assert epochs[1] == epochs[2]
    assert ids(loader, 7, 2) == epochs[1][2:]
    assert (loader.length, loader.batch_size) == (4, None)


def test_an_endless_sampler_is_read_lazily():
    class Endless:
        def __iter__(self):
            while True:
                yield random.randrange(21)

    loader = loader_of(DataLoader(Augmented(), 4, sampler=Endless()), batched=True)

    first = [plain(batch) for batch in islice(loader.iterate(0), 5)]

    assert loader.length is None
    assert [plain(batch) for batch in islice(loader.iterate(0, 3), 2)] == first[3:]
    with pytest.raises(TypeError, match="nobody knows how many batches 'train' has"):
        len(loader)


def test_without_a_batch_size_an_item_is_a_batch():
    given = DataLoader(Augmented(), batch_size=None, sampler=range(3))
    loader = loader_of(given, batched=True)

    assert [batch[0] for batch in read(loader, 0)] == [0, 1, 2]
    assert read(loader, 0, 1) == read(loader, 0)[1:]


def test_a_sampler_of_lists_reads_batches_by_a_list():
    data: Any = torch.arange(10)
    given: DataLoader = DataLoader(
        data, None, sampler=BatchSampler(SequentialSampler(data), 4, False)
    )

    assert read(loader_of(given, batched=True), 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("source", [list(range(7)), tuple(range(7)), torch.arange(7), range(7)])
def test_a_sequence_of_samples_is_a_dataset(source):
    loader = loader_of(source, shuffle=False)

    assert (loader.kind, len(loader)) == ("deterministic", 2)
    assert read(loader, 0) == [[0, 1, 2, 3], [4, 5, 6]]


def test_an_iterable_of_samples_is_a_dataset():
    class Samples:
        def __iter__(self):
            return iter(range(5))

    loader = loader_of(Samples(), drop_last=True)

    assert (loader.kind, read(loader, 0)) == ("iterable", [[0, 1, 2, 3]])


def test_a_list_of_batches_is_given_as_it_is():
    batches = [object(), object(), object()]
    loader = loader_of(batches, batched=True)

    assert list(loader.iterate(0)) == batches
    assert list(loader.iterate(1, 2)) == batches[2:]
    assert (loader.kind, len(loader)) == ("deterministic", 3)


def test_a_function_that_returns_batches_is_called_for_each_epoch():
    loader = loader_of(lambda: (n for n in range(3)), batched=True)

    assert [read(loader, epoch) for epoch in range(2)] == [[0, 1, 2], [0, 1, 2]]


def test_an_iterable_without_workers_is_the_same_in_every_run():
    first, again = (
        [read(loader_of(Batches(), batched=True), epoch) for epoch in range(2)] for _ in range(2)
    )

    assert first == again
    assert first[0] != first[1]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_an_iterable_hear_of_the_epoch_and_draw_by_it(persistent):
    loader = loader_of(Count(), num_workers=2, persistent_workers=persistent)

    epochs = [read(loader, epoch) for epoch in range(3)]

    fresh = read(loader_of(Count(), num_workers=2), 2)
    assert [sorted(n for batch in epoch for n in batch[0]) for epoch in epochs] == [
        [*range(20)]
    ] * 3
    assert {n for batch in epochs[2] for n in batch[1]} == {2}
    assert epochs[2] == fresh
    assert len({batch[2][0] for epoch in epochs for batch in epoch}) == 6


@pytest.mark.parametrize("dataset", [Augmented(), Count()])
def test_a_user_s_worker_function_finds_the_user_s_dataset(dataset):
    given = DataLoader(dataset, 4, num_workers=1, worker_init_fn=mark_worker)
    loader = loader_of(given, batched=True)

    batches = read(loader, 0)

    assert len(batches) == (2 if isinstance(dataset, Count) else 6)


def test_a_data_loader_with_its_own_iteration_is_read_as_it_is():
    class Doubled(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch[0] * 2

    loader = loader_of(Doubled(TensorDataset(torch.arange(1, 4)), 2, shuffle=True), batched=True)

    assert sorted(n for batch in read(loader, 0) for n in batch) == [2, 4, 6]
    assert read(loader, 0) == read(loader, 0)
    assert loader.kind == "iterable"


def test_ranks_see_every_sample():
    parts = [loader_of(Augmented(), place=Placement(CPU.device, rank, 2)) for rank in range(2)]

    seen = [index for part in parts for batch in ids(part, 0) for index in batch]

    assert sorted(set(seen)) == list(range(21))
    assert len(seen) == 22  # one to make it even
    assert [len(part) for part in parts] == [3, 3]


def test_ranks_draw_different_noise():
    parts = [loader_of(Augmented(), place=Placement(CPU.device, rank, 2)) for rank in range(2)]

    noise = [value for part in parts for batch in read(part, 0) for value in batch[2]]

    assert len(set(noise)) == len(noise)


@pytest.mark.parametrize("batched", [False, True])
def test_positions_put_an_evaluation_back_in_order(batched):
    source = [torch.tensor([n, n]) for n in range(7)] if batched else list(range(29))
    outputs = []
    for rank in range(3):
        loader = loader_of(
            source,
            batched=batched,
            training=False,
            shuffle=False,
            place=Placement(CPU.device, rank, 3),
        )
        outputs += [(loader.positions(n), plain(b)) for n, b in enumerate(loader.iterate(0))]

    values = [value for _, batch in sorted(outputs) for value in batch]
    assert values == ([n for n in range(7) for _ in range(2)] if batched else list(range(29)))


def test_ranks_may_have_different_numbers_of_batches_in_an_evaluation():
    loader = loader_of(range(9), training=False, place=Placement(CPU.device, 0, 2))

    assert loader.lengths == [1, 2]
    assert len(loader) == 1


# What is keyed, and what is not


def test_a_dataset_that_declares_itself_and_draws_is_an_error_that_names_it():
    class Liar(Augmented):
        deterministic = True

    loader = loader_of(Liar())

    with pytest.raises(DataError, match=r"Liar says deterministic = True.* torch and numpy"):
        read(loader, 0)


class WorkerLiar(Augmented):
    deterministic = True


def test_workers_are_watched_too():
    loader = loader_of(WorkerLiar(4), num_workers=1)

    with pytest.raises(DataError, match="WorkerLiar says deterministic = True"):
        read(loader, 0)


def test_an_iterable_that_declares_itself_and_draws_is_an_error():
    class Liar(Batches):
        deterministic = True

    with pytest.raises(DataError, match="Liar says deterministic = True"):
        read(loader_of(Liar(), batched=True), 0)


def test_keyed_can_be_switched_off(expected):
    loader = loader_of(Augmented(), keyed=False)
    before = generators()

    epoch = read(loader, 0)

    assert loader.kind == "unkeyed"
    assert [batch[0] for batch in epoch] == [batch[0] for batch in expected[0]]
    assert generators() != before


class WorkerSeed(Augmented):
    def __getitem__(self, index):
        return (getattr(get_worker_info(), "seed", None),)


class WorkerSeeds(Count):
    def __iter__(self):
        yield (getattr(get_worker_info(), "seed", None),)


@pytest.mark.parametrize("dataset", [WorkerSeed(1), WorkerSeeds()])
def test_the_seed_of_a_worker_depends_on_the_epoch_alone(dataset):
    loader = loader_of(dataset, num_workers=1)

    seeds = [read(loader, epoch) for epoch in range(2)]

    assert read(loader_of(dataset, num_workers=1), 1) == seeds[1] != seeds[0]


# Settings


def test_settings_of_a_split_come_before_the_common_ones():
    config = {"batch_size": 32, "num_workers": 2, "train": {"batch_size": 8}, "val": {"timeout": 3}}

    assert split_settings(config, "train") == {"batch_size": 8, "num_workers": 2}
    assert split_settings(config, "test") == {"batch_size": 32, "num_workers": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_worker": 1}, r"dataloader has no setting 'num_worker': .*'num_workers'"),
        ({"train": {"shufle": 1}}, r"dataloader\.train has no setting 'shufle': .*'shuffle'"),
        ({"trian": {"shuffle": 1}}, r"dataloader\.trian is of no split: .*'train'"),
        ({"generator": 1}, "no setting 'generator'"),
    ],
)
def test_a_wrong_setting_is_an_error_with_the_right_one(config, message):
    with pytest.raises(DataError, match=message):
        split_settings(config, "train", splits=["train", "val"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume": "exakt"}, "resume of 'train' is 'exakt': did you mean 'exact'"),
        ({"batch_size": 0}, "the dataloader of 'train' cannot be made: .*batch_size"),
        ({"prefetch_factor": 2}, "the dataloader of 'train' cannot be made: prefetch_factor"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_split(settings, message):
    with pytest.raises(DataError, match=message):
        loader_of(range(4), **settings)


def test_shuffle_of_the_settings_comes_before_the_default():
    assert read(loader_of(range(4), shuffle=True), 0) != [[0, 1, 2, 3]]
    loader = prepare_loader(
        "train",
        range(4),
        batched=False,
        settings={"batch_size": 4, "shuffle": False},
        seed=0,
        shuffle=True,
        training=True,
        placement=CPU,
    )
    assert read(loader, 0) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("source", [TensorDataset(torch.zeros(3)), 3])
def test_what_gives_no_batches_is_refused(source):
    with pytest.raises(DataError, match="gives no batches"):
        loader_of(source, batched=True)


def test_what_gives_no_samples_is_refused():
    with pytest.raises(DataError, match="is int, without __getitem__ and __iter__"):
        loader_of(3)


def test_a_loader_that_accelerate_prepared_is_refused():
    from accelerate.data_loader import prepare_data_loader

    with pytest.raises(DataError, match="went through accelerate's prepare"):
        loader_of(prepare_data_loader(DataLoader(TensorDataset(torch.zeros(2)))), batched=True)
