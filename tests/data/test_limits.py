"""How much of a split is read, and streams that are read on from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from danling.data.limits import Amount, Endless, Nothing
from danling.data.loader import Loader
from danling.data.prepare import Placement, prepare_loader
from danling.data.sampling import Sharding
from danling.data.sources import StreamSource
from danling.errors import DataError, ResumeError

CPU = torch.device("cpu")


class Recorded:
    """Samples that know which of them were read."""

    deterministic = True

    def __init__(self, samples: int) -> None:
        self.samples, self.read = samples, list[int]()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


def loader_of(source: Any, amount: Amount, rank: int = 0, size: int = 1, **more: Any) -> Loader:
    options: dict[str, Any] = {"settings": {"batch_size": 2}, "training": True, "batched": False}
    return prepare_loader(
        "train",
        source,
        seed=0,
        shuffle=True,
        placement=Placement(CPU, rank, size),
        **options | more,
    ).limit(amount, training=(options | more)["training"])


def found(loader: Loader, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in loader.iterate(epoch, start)]


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (Amount(), 5),
        (Amount(2), 2),
        (Amount(0.5), 2),
        (Amount(0.99), 4),
        (Amount(None, 3), 3),
        (Amount(4, 3), 3),
        (Amount(0.5, 3), 2),
        (Amount(100), 5),
    ],
)
def test_an_epoch_is_cut_and_no_sample_of_the_rest_is_read(amount, expected):
    data = Recorded(10)
    whole, cut = loader_of(Recorded(10), Amount()), loader_of(data, amount)

    assert cut.length == cut.batches_in(0) == expected
    assert found(cut, 3) == found(whole, 3)[:expected]
    assert found(cut, 3, 1) == found(whole, 3)[1:expected]
    assert len(data.read) == 2 * (2 * expected - 1)
    assert cut.is_length_exact


def test_workers_read_no_more_than_the_limit_by_far():
    loader = loader_of(Recorded(1000), Amount(3), settings={"batch_size": 2, "num_workers": 1})

    assert len(found(loader, 0)) == 3
    assert found(loader, 0, 1) == found(loader, 0)[1:]


def test_epochs_that_repeat_read_the_first_one_again_from_anywhere():
    loader = loader_of(Recorded(10), Amount(3, repeats=True))
    first = found(loader, 0)

    assert len(first) == 3
    assert found(loader, 5) == first
    assert found(loader, 7, 2) == first[2:]
    assert found(loader_of(Recorded(10), Amount(3)), 5) != first


@pytest.mark.parametrize("training", [True, False])
def test_every_process_reads_up_to_the_limit(training):
    parts = [loader_of(Recorded(9), Amount(2), rank, 2, training=training) for rank in range(2)]

    assert [part.length for part in parts] == [2, 2]
    assert [part.lengths for part in parts] == [[2, 2]] * 2
    seen = [sample for part in parts for batch in found(part, 0) for sample in batch]
    assert len(seen) == len(set(seen)) == 8


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def numbers(end: int) -> Iterator[torch.Tensor]:
    return (torch.tensor([number]) for number in range(end))


def test_a_stream_is_read_on_from_epoch_to_epoch():
    loader = loader_of(lambda: numbers(5), Amount(3), batched=True)

    assert (loader.length, loader.is_length_exact) == (3, True)
    epochs = [flat(found(loader, epoch)) for epoch in range(4)]
    assert epochs == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert flat(found(loader, 1)) == [3, 4, 0]
    assert flat(found(loader, 3)) == [4, 0, 1]


def test_each_process_reads_its_part_of_a_stream_on():
    parts = [loader_of(lambda: numbers(5), Amount(3), rank, 2, batched=True) for rank in range(2)]

    epochs = [[flat(found(part, epoch)) for part in parts] for epoch in range(2)]
    assert epochs == [[[0, 2, 0], [1, 3, 1]], [[2, 0, 2], [3, 1, 3]]]


def test_a_stream_in_an_evaluation_is_cut_and_begins_anew_each_time():
    loader = loader_of(lambda: numbers(5), Amount(3), batched=True, training=False)

    assert [flat(found(loader, 0)) for _ in range(2)] == [[0, 1, 2]] * 2
    assert not loader.is_length_exact


def test_a_stream_that_is_replayed_goes_on_where_it_was():
    options: dict[str, Any] = {"batched": True, "settings": {"resume": "replay"}}
    first = loader_of(lambda: numbers(5), Amount(3), **options)
    for epoch in range(2):
        found(first, epoch)
    iterator = first.iterate(2)
    next(iterator), next(iterator)

    for batch, expected in ((1, [2, 3]), (2, [3])):
        other = loader_of(lambda: numbers(5), Amount(3), **options)
        assert other.load_state_dict(first.state_dict(2, batch)) == []
        assert flat(found(other, 2, batch)) == expected
        assert flat(found(other, 3)) == [4, 0, 1]


def test_a_stream_goes_on_after_an_epoch_that_was_left_early():
    options: dict[str, Any] = {"batched": True, "settings": {"resume": "replay"}}
    first = loader_of(lambda: numbers(5), Amount(3), **options)
    found(first, 0)
    next(first.iterate(1))
    state = first.state_dict(2, 0)

    other = loader_of(lambda: numbers(5), Amount(3), **options)
    other.load_state_dict(state)
    assert flat(found(other, 2)) == flat(found(first, 2)) == [1, 2, 3]


def test_a_limit_that_has_changed_is_no_place_to_go_on_from():
    options: dict[str, Any] = {"batched": True, "settings": {"resume": "replay"}}
    first = loader_of(lambda: numbers(5), Amount(3), **options)
    found(first, 0)
    with pytest.raises(ResumeError, match="limit_batches 3 -> 2"):
        loader_of(lambda: numbers(5), Amount(2), **options).load_state_dict(first.state_dict(1, 0))


def test_an_iterable_dataset_is_read_on_by_workers_too():
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    loader = loader_of(DataLoader(Stream(), batch_size=2, num_workers=1), Amount(3), batched=True)

    assert found(loader, 0) == [[0, 1], [2, 3], [4, 5]]
    assert found(loader, 1) == [[6, 7], [8, 9], [0, 1]]


def test_a_stream_without_batches_is_said_to_be_empty():
    source = StreamSource(lambda: iter(()), Sharding(1), keyed=False, replays=False, seed=0)
    with pytest.raises(DataError, match="has no batches"):
        next(Endless(source).read(0))


def test_nothing_is_what_a_training_without_data_reads():
    loader = loader_of(None, Amount(3))

    assert (loader.length, loader.is_length_exact) == (3, True)
    assert list(loader.iterate(0, 1)) == [None, None]
    assert loader_of(None, Amount()).length is None
    assert Nothing(Sharding(1)).doubts == []
