"""Several splits that are read together: what a batch is, when they end, where each split is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from danling.config import Config
from danling.data.combined import Combined, check_mode
from danling.data.prepare import Placement
from danling.data.splits import Splits
from danling.distributed.world import World
from danling.errors import DataError

Plain = dict[str, Any]


def make(lengths: dict[str, int], rank: int = 0, size: int = 1, **config: Any) -> Splits:
    """Splits of one-sample batches, of which each sample is its number."""
    settings = {"seed": 0, "dataloader": {"batch_size": 1}} | config
    splits = Splits(Config(settings), World(), Placement(torch.device("cpu"), rank, size))
    splits.datasets = {name: list(range(length)) for name, length in lengths.items()}
    return splits


def read(splits: Splits, mode: str, epoch: int = 0, places: Any = None) -> list[Plain]:
    reading = splits.read(list(splits.datasets), mode, epoch, places or {})
    return [plain(batch) for batch in reading.batches]


def plain(batch: dict[str, Any]) -> Plain:
    return {name: None if part is None else part.tolist()[0] for name, part in batch.items()}


def side_by_side(**columns: list[Any]) -> list[Plain]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


EXPECTED: dict[str, list[Plain]] = {
    "min_size": side_by_side(a=[0, 1], b=[0, 1]),
    "max_size": side_by_side(a=[0, 1, None, None, None], b=[0, 1, 2, 3, 4]),
    "max_size_cycle": side_by_side(a=[0, 1, 0, 1, 0], b=[0, 1, 2, 3, 4]),
    "sequential": [*({"a": n} for n in range(2)), *({"b": n} for n in range(5))],
}


@pytest.mark.parametrize("mode", EXPECTED)
@pytest.mark.parametrize("streams", [False, True])
def test_splits_are_read_together_in_each_mode(mode, streams):
    splits = make({"a": 2, "b": 5})
    if streams:
        lengths = {name: len(data) for name, data in splits.datasets.items()}
        splits.datasets = dict.fromkeys(lengths)
        splits.dataloaders = {
            name: (lambda length=length: (torch.tensor([n]) for n in range(length)))
            for name, length in lengths.items()
        }
    reading = splits.read(["a", "b"], mode, 0, {})

    assert reading.is_exact != streams
    assert reading.length == (None if streams else len(EXPECTED[mode]))
    assert [plain(batch) for batch in reading.batches][: len(EXPECTED[mode])] == EXPECTED[mode]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("mode", EXPECTED)
def test_the_modes_are_those_of_lightning(mode):
    lightning = pytest.importorskip("lightning.pytorch.utilities.combined_loader")
    data: dict[str, Any] = {"a": range(2), "b": range(5)}
    loaders = {name: DataLoader(numbers) for name, numbers in data.items()}
    found = []
    for batch, _, index in lightning.CombinedLoader(loaders, mode):
        found.append(plain({"ab"[index]: batch} if mode == "sequential" else batch))

    assert found == EXPECTED[mode]


@pytest.mark.parametrize("mode", EXPECTED)
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_left_goes_on_anywhere(mode, streams):
    def fresh() -> Splits:
        splits = make({"a": 2, "b": 5}, dataloader={"batch_size": 1, "resume": "replay"})
        if streams:
            splits.datasets = {}
            splits.dataloaders = {
                "a": lambda: (torch.tensor([n]) for n in range(2)),
                "b": lambda: (torch.tensor([n]) for n in range(5)),
            }
        return splits

    names = ["a", "b"]
    for used in range(len(EXPECTED[mode]) + 1):
        splits, other = fresh(), fresh()
        reading = splits.read(names, mode, 0, {})
        batches = reading.batches
        for _ in range(used):
            next(batches)
        places = reading.places(used)
        other.load_state_dict(splits.state_dict(0, places))
        again = other.read(names, mode, 0, places)

        assert again.done == (sum if mode == "sequential" else max)(places.values())
        left = [plain(batch) for batch in again.batches]
        assert left[: len(EXPECTED[mode]) - used] == EXPECTED[mode][used:]
        if not streams:
            assert again.length == len(EXPECTED[mode])


def test_a_split_that_is_cycled_has_another_order_in_each_pass_and_epoch():
    splits = make({"train": 8, "b": 24}, dataloader={"batch_size": 1})
    orders = [
        [batch["train"] for batch in read(splits, "max_size_cycle", epoch)] for epoch in range(2)
    ]

    passes = [order[first : first + 8] for order in orders for first in (0, 8, 16)]
    assert all(sorted(order) == list(range(8)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6
    alone = [int(batch) for batch in splits.loader("train").iterate(0)]
    assert passes[0] == alone


@pytest.mark.parametrize(
    ("samples", "config"),
    [(3, {}), (5, {"limit_batches": {"train": 3}})],
    ids=["whole", "limited"],
)
def test_a_cycle_goes_on_exactly_in_a_later_pass(samples, config):
    splits, other = (make({"train": samples, "b": 10}, **config) for _ in range(2))
    whole = read(splits, "max_size_cycle", 2)
    for used in range(11):
        reading = splits.read(["train", "b"], "max_size_cycle", 2, {})
        for _ in range(min(used + 1, 10)):  # one is read ahead
            next(reading.batches)
        places = reading.places(used)
        assert places == {"train": used, "b": used}
        assert other.load_state_dict(splits.state_dict(2, places)) == []
        assert read(other, "max_size_cycle", 2, places)[: 10 - used] == whole[used:]


def test_a_split_that_has_ended_stands_at_its_end():
    reading = make({"a": 2, "b": 5}).read(["a", "b"], "max_size", 0, {})

    assert len(list(reading.batches)) == 5
    assert [reading.places(used) for used in (1, 4, 5)] == [
        *({"a": 1, "b": 1}, {"a": 2, "b": 4}, {"a": 2, "b": 5})
    ]


def test_splits_that_were_read_before_go_on_where_they_are():
    splits = make({"a": 4, "b": 5})

    reading = splits.read(["a", "b"], "min_size", 0, {"a": 3, "b": 1})
    assert (reading.done, reading.length) == (3, 4)
    assert [plain(batch) for batch in reading.batches] == [{"a": 3, "b": 1}]
    assert reading.places(1) == {"a": 4, "b": 2}


def test_a_training_split_may_be_several():
    splits = make({"val": 2}, dataloader={"batch_size": 2, "train": {"mode": "max_size_cycle"}})
    splits._config.dataloader["train/b"] = {"batch_size": 3}
    splits.datasets["train"] = {"a": list(range(4)), "b": list(range(12))}

    assert splits.parts("train") == ["train/a", "train/b"]
    assert splits.evaluation_names == ["val"]
    assert splits.whole("train").length == 4
    reading = splits.read(["train"], None, 0, {})
    batches = list(reading.batches)
    assert [len(batch["a"]) for batch in batches] == [2] * 4
    assert [len(batch["b"]) for batch in batches] == [3] * 4
    assert reading.places(3) == {"train/a": 3, "train/b": 3}
    assert list(splits.state_dict(0, {})) == ["train/a", "train/b"]
    assert splits.read(["train"], "min_size", 0, {}).length == 2


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"limit_batches": {"train": 3}}, 3),
        ({"limit_batches": {"train": 0.5}}, 2),
        ({"limit_batches": {"train/b": 2}}, 2),
        ({"fast_dev_run": 1}, 1),
        ({"overfit_batches": 2}, 2),
    ],
)
def test_several_are_limited_together_and_one_by_one(config, length):
    splits = make({}, **config)
    splits.datasets["train"] = {"a": list(range(4)), "b": list(range(9))}

    assert splits.whole("train").length == length
    assert len(list(splits.read(["train"], None, 0, {}).batches)) == length
    assert len(list(splits.read(["train"], None, 0, {"train/a": 1, "train/b": 1}).batches)) == (
        length - 1
    )
    if "overfit_batches" in config:
        first, later = ([*splits.read(["train"], None, n, {}).batches] for n in (0, 5))
        assert first == later


@pytest.mark.parametrize("mode", EXPECTED)
def test_every_process_reads_as_many(mode):
    parts = [make({"a": 5, "b": 7}, rank, 2) for rank in range(2)]
    readings = [part.read(["a", "b"], mode, 0, {}) for part in parts]

    assert readings[0].length == readings[1].length
    counts = [len(list(reading.batches)) for reading in readings]
    assert counts[0] == counts[1]


def test_a_stream_of_unknown_length_ends_the_others_in_time():
    splits = make({"a": 3})
    splits.datasets["b"] = None
    splits.dataloaders["b"] = lambda: iter([torch.tensor([n]) for n in range(2)])
    reading = splits.read(["a", "b"], "min_size", 0, {})

    assert [plain(batch) for batch in reading.batches] == side_by_side(a=[0, 1], b=[0, 1])
    assert reading.places(2) == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("splits", "mode", "message"),
    [
        (["a", "b"], "min_sise", "mode='min_sise': did you mean 'min_size'"),
        (["a"], "min_size", "mode='min_size' is for several splits, and 'a' is one"),
        (["a", "c"], None, "no data for the split 'c'"),
        (["a", "train"], None, r"'train' is several loaders: .*'train/x'"),
    ],
)
def test_what_cannot_be_read_together_is_refused(splits, mode, message):
    data = make({"a": 2, "b": 2})
    data.datasets["train"] = {"x": [1], "y": [2]}
    with pytest.raises(DataError, match=message):
        data.read(splits, mode, 0, {})


def test_a_mode_belongs_to_several_loaders():
    splits = make({"train": 2}, dataloader={"train": {"mode": "min_size"}})
    with pytest.raises(DataError, match="'train' is one"):
        splits.loader("train")
    check_mode("sequential")


def test_no_more_is_read_than_what_is_asked_for():
    read_of: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for number in range(9):
            read_of.append(number)
            yield torch.tensor([number])

    splits = make({"a": 9})
    splits.dataloaders["b"] = stream
    combined = Combined({"a": splits.loader("a"), "b": splits.loader("b")}, most=2)

    assert len(list(combined.read(0, {}).batches)) == 2
    assert read_of == [0, 1]
