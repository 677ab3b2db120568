from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from danling.data.randomness import keyed_rng, purity, watched
from danling.data.readers import IndexedReader, IterableReader
from danling.errors import DataError
from danling.seed import derive

TENSORS = TensorDataset(torch.zeros(4))
DRAWS: dict[str, Callable[[], object]] = {
    "python": random.random,
    "numpy": np.random.random,
    "torch": lambda: torch.rand(1),
}


def generators():
    """All bits of the generators of this process."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return random.getstate(), numpy, torch.get_rng_state().tolist()


class Unknown(Dataset):
    def __getitem__(self, index):
        return (
            index,
            random.random(),
            float(np.random.random()),
            float(np.random.standard_normal()),
            torch.rand(1).item(),
        )

    def __len__(self):
        return 4


class Declared(Unknown):
    deterministic = True


class Sincere(Dataset):
    deterministic = False

    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append((epoch, random.random()))

    def __getitem__(self, index):
        return index


class MyTensors(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0] + torch.rand(1)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (TENSORS, "known"),
        ([1, 2], "known"),
        (range(3), "known"),
        (torch.zeros(3), "known"),
        (np.zeros(3), "known"),
        (Subset(TENSORS, [0]), "known"),
        (ConcatDataset([TENSORS, Subset(TENSORS, [0])]), "known"),
        (StackDataset(TENSORS, TENSORS), "known"),
        (StackDataset(a=TENSORS, b=Declared()), "declared"),
        (Declared(), "declared"),
        (Subset(Declared(), [0]), "declared"),
        (ConcatDataset([TENSORS, Unknown()]), "unknown"),
        (Subset(Unknown(), [0]), "unknown"),
        (Unknown(), "unknown"),
        (Sincere(), "random"),
        (MyTensors(torch.zeros(2)), "unknown"),
    ],
)
def test_what_is_known_of_a_dataset(dataset, expected):
    assert purity(dataset) == expected


def test_an_instance_can_declare_itself():
    dataset = MyTensors(torch.zeros(2))
    dataset.deterministic = True  # type: ignore[attr-defined]  # as users write it

    assert purity(dataset) == "declared"


def test_a_keyed_block_draws_what_its_key_says_and_leaves_no_trace():
    np.random.standard_normal()
    before = generators()
    values = []
    for key in (derive(0, 1), derive(0, 2), derive(0, 1)):
        with keyed_rng(key):
            values.append(Unknown()[0])

    assert values[0] == values[2]
    assert all(a != b for a, b in zip(values[0][1:], values[1][1:], strict=True))
    assert generators() == before


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_that_was_denied_is_an_error(name):
    message = f"Pictures says deterministic = True, .* from {name}"

    with pytest.raises(DataError, match=message), watched("Pictures"):
        DRAWS[name]()


def test_a_block_that_draws_nothing_passes():
    with watched("Pictures"):
        torch.zeros(3) + np.zeros(1).sum()


def test_what_a_block_raises_is_not_hidden():
    with pytest.raises(ZeroDivisionError), watched("Pictures"):
        _ = torch.rand(1).tolist()[0] / 0


def test_a_batch_depends_on_seed_epoch_and_position_alone():
    def read(seed, epoch, position):
        reader = IndexedReader(Unknown(), list, True, "keyed", seed)
        reader[3, 9, [0]]
        return reader[epoch, position, [0, 1]]

    first = read(0, 0, 0)
    torch.rand(1)

    assert read(0, 0, 0) == first
    others = [read(1, 0, 0), read(0, 1, 0), read(0, 0, 1)]
    assert len({str(batch) for batch in [first, *others]}) == 4


def test_collating_is_keyed_with_its_batch():
    reader = IndexedReader(
        [1, 2], lambda samples: (samples, torch.rand(1).item()), True, "keyed", 0
    )

    values = [reader[0, position, [0, 1]] for position in (0, 2, 0)]

    assert values[0] == values[2] != values[1]


def test_samples_are_read_together_where_the_dataset_can():
    class Together(Dataset):
        def __getitems__(self, indices):
            return [("together", tuple(indices))]

    assert IndexedReader(Together(), list, True, "keyed", 0)[0, 0, [1, 2]] == [("together", (1, 2))]


def test_a_ready_made_batch_is_read_by_its_one_index():
    reader = IndexedReader({"a": [1, 2]}, tuple, False, "free", 0)

    assert reader[0, 0, "a"] == (1, 2)


def test_a_watched_dataset_that_draws_is_named():
    reader = IndexedReader(Declared(), list, True, "trusted", 0)

    with pytest.raises(DataError, match="Declared says deterministic = True"):
        reader[0, 0, [1]]


def test_a_dataset_hears_of_each_epoch_once_and_may_draw_then():
    dataset = Sincere()
    reader = IndexedReader(dataset, list, True, "keyed", 0)
    before = generators()

    for epoch, position in [(0, 0), (0, 1), (1, 0)]:
        reader[epoch, position, [0]]

    expected = [(epoch, random.Random(derive(0, "epoch", epoch)).random()) for epoch in (0, 1)]
    assert dataset.epochs == expected
    assert generators() == before


def test_an_iterable_hears_of_the_epoch():
    class Stream(Sincere):
        def __iter__(self):
            return iter([1, 2])

    dataset = Stream()
    reader = IterableReader(dataset, 0, keyed=True)
    reader.set_epoch(3)

    assert [epoch for epoch, _ in dataset.epochs] == [3]
    assert list(reader) == [1, 2]
