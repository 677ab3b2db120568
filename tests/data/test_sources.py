from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from danling.data.sampling import Sequential, Sharding, Shuffled
from danling.data.sources import IndexedSource, ListSource


class Drawing(Dataset):
    fingerprint = 3

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.rand(())


class Declared(Drawing):
    deterministic = True


TENSORS = TensorDataset(torch.arange(5))


def source_of(dataset, order=None, size=2, batched=None, collate_fn=None, keyed=True):
    return IndexedSource(
        dataset,
        order or Sequential(5),
        Sharding(size),
        batched=batched,
        collate_fn=collate_fn,
        keyed=keyed,
        seed=0,
        options={},
    )


@pytest.mark.parametrize(
    ("dataset", "collate_fn", "keyed", "expected"),
    [
        (TENSORS, None, True, "deterministic"),
        (TENSORS, None, False, "deterministic"),
        (TENSORS, list, True, "keyed"),  # who knows what it draws
        (TENSORS, list, False, "unkeyed"),
        (Declared(), list, True, "deterministic"),
        (Drawing(), None, True, "keyed"),
        (Drawing(), None, False, "unkeyed"),
    ],
)
def test_what_a_dataset_is_treated_as(dataset, collate_fn, keyed, expected):
    assert source_of(dataset, collate_fn=collate_fn, keyed=keyed).kind == expected


def test_two_epochs_can_be_read_side_by_side():
    source = source_of(TENSORS, Shuffled(5, seed=0))
    expected = [[b.tolist() for (b,) in source.batches(epoch, 0)] for epoch in range(2)]

    both = list(zip(source.batches(0, 0), source.batches(1, 0), strict=True))

    assert [[pair[n][0].tolist() for pair in both] for n in range(2)] == expected


def test_a_source_says_what_a_position_means():
    assert source_of(Drawing()).identity == {
        "sampler": "sequential",
        "samples": 5,
        "fingerprint": "3",
    }


@pytest.mark.parametrize("training", [True, False])
def test_ranks_share_a_list_of_batches(training):
    parts = [ListSource("abcde", Sharding(1, rank, 3, training)) for rank in range(3)]

    batches = [list(part.batches(0, 0)) for part in parts]
    rest = [list(part.batches(0, 3)) for part in parts]

    last = ["d", "e", "a"] if training else ["", "d", "e"]
    assert ["".join(part) for part in batches] == [
        first + end for first, end in zip("abc", last, strict=True)
    ]
    assert ["".join(part) for part in rest] == last
    assert [part.sharding.count(5) for part in parts] == [len(part) for part in batches]
