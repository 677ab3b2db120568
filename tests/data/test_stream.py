from __future__ import annotations

import random

import pytest
import torch

from danling.data.sampling import Sharding
from danling.data.sources import StreamSource
from danling.errors import DataError


class Numbers:
    def __init__(self, length=7):
        self.length = length
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        first = random.random()
        for number in range(self.length):
            yield number, first, torch.rand(()).item()


class Stateful(Numbers):
    def __init__(self, length=7):
        super().__init__(length)
        self.state = {"position": 0}

    def __iter__(self):
        while self.state["position"] < self.length:
            self.state["position"] += 1
            yield self.state["position"] - 1
        self.state["position"] = 0

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def stream_of(source, rank=0, world_size=1, training=True, **arguments):
    sharding = Sharding(1, rank, world_size, training, drop_last=training)
    return StreamSource(
        source, sharding, **{"keyed": True, "replays": False, "seed": 0, **arguments}
    )


def test_a_stream_is_a_function_of_the_epoch():
    first, again = stream_of(Numbers()), stream_of(Numbers())

    epochs = [list(first.batches(epoch, 0)) for epoch in (0, 1)]
    torch.rand(1)

    assert [list(again.batches(epoch, 0)) for epoch in (1, 0)] == epochs[::-1]
    assert epochs[0] != epochs[1]


def test_what_training_draws_in_between_changes_nothing():
    quiet = list(stream_of(Numbers()).batches(0, 0))

    disturbed = []
    for batch in stream_of(Numbers()).batches(0, 0):
        random.random(), torch.rand(3)
        disturbed.append(batch)

    assert disturbed == quiet


def test_a_stream_hears_of_the_epoch():
    source = Numbers()
    stream = stream_of(source)

    for epoch in (4, 5):
        list(stream.batches(epoch, 0))

    assert source.epochs == [4, 5]


def test_batches_from_the_middle_are_those_of_the_whole():
    whole = list(stream_of(Numbers()).batches(0, 0))

    assert [list(stream_of(Numbers()).batches(0, n)) for n in range(8)] == [
        whole[n:] for n in range(8)
    ]


@pytest.mark.parametrize(
    ("training", "expected"),
    [(True, [[0, 3], [1, 4], [2, 5]]), (False, [[0, 3], [1, 4], [2, 5, 6]])],
)
def test_ranks_take_turns_and_training_leaves_out_what_does_not_suffice(training, expected):
    parts = [stream_of(Numbers(), rank, 3, training, length=7) for rank in range(3)]

    batches = [[batch[0] for batch in part.batches(0, 0)] for part in parts]

    assert batches == expected
    assert [part.sharding.count(7) for part in parts] == [len(part) for part in expected]


def test_an_iterator_that_is_spent_is_an_error():
    stream = stream_of(iter([1, 2]))

    assert list(stream.batches(0, 0)) == [1, 2]
    with pytest.raises(DataError, match="gave no batch in epoch 1, but it did before"):
        list(stream.batches(1, 0))


def test_a_stream_that_was_always_empty_is_no_error():
    stream = stream_of([])

    assert [list(stream.batches(epoch, 0)) for epoch in range(2)] == [[], []]


def test_states_are_copies_of_the_last_batches():
    stream = stream_of(Stateful())
    batches = stream.batches(0, 0)
    for _ in range(5):
        next(batches)

    assert [stream.state_at(n) for n in (3, 4, 5)] == [{"position": n} for n in (3, 4, 5)]
    with pytest.raises(DataError, match="the state of Stateful after batch 2 is gone; held are 3"):
        stream.state_at(2)


def test_a_held_state_is_where_it_goes_on():
    stream = stream_of(Stateful())
    stream.hold_state(4, {"position": 4})

    assert list(stream.batches(0, 4)) == [4, 5, 6]
    assert list(stream.batches(1, 0)) == list(range(7))


def test_a_stream_that_is_replayed_has_no_use_for_its_state():
    stream = stream_of(Stateful(), replays=True)

    assert stream.kind == "iterable"
    assert list(stream.batches(0, 4)) == [4, 5, 6]


@pytest.mark.parametrize(
    ("source", "name"),
    [(Numbers(), "Numbers"), (lambda: [1], "<lambda>"), (iter([]), "list_iterator")],
)
def test_a_stream_is_called_what_the_user_calls_it(source, name):
    assert stream_of(source).name.rsplit(".", 1)[-1] == name


def test_errors_of_a_stream_reach_the_user_and_leave_the_generators_alone():
    def broken():
        yield 1
        random.random()
        raise KeyError("broken")

    before = random.getstate()
    batches = stream_of(broken).batches(0, 0)

    assert next(batches) == 1
    with pytest.raises(KeyError, match="broken"):
        next(batches)
    assert random.getstate() == before


def test_a_shuffle_buffer_that_the_state_leaves_out_is_a_doubt():
    class BufferShuffledExamplesIterable:
        ex_iterable = None

    class Mapped:
        ex_iterable = BufferShuffledExamplesIterable()

    source = Stateful()
    source._ex_iterable = Mapped()  # type: ignore[attr-defined]  # as in Hugging Face's datasets

    assert [len(stream_of(source, replays=replays).doubts) for replays in (False, True)] == [1, 0]
    assert "shuffle buffer of Stateful" in stream_of(source).doubts[0]
    assert stream_of(Stateful()).doubts == []
