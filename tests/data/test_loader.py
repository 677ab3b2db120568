from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from danling.data.prepare import Placement, prepare_loader
from danling.errors import ResumeError
from danling.seed import derive


class Augmented(Dataset):
    def __init__(self, length=29, fingerprint=None):
        self.length = length
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index, random.random(), np.random.random(), torch.rand(()).item()


class Free(Augmented):
    deterministic = True

    def __getitem__(self, index):
        return (index,)


class Batches:
    """Draws, and counts how often it is read."""

    def __init__(self, length=8):
        self.length = length
        self.reads = 0

    def __iter__(self):
        for number in range(self.length):
            self.reads += 1
            yield number, random.random(), float(np.random.random())


class Stateful(Batches):
    """Goes on where its state says, once."""

    def __init__(self, length=8):
        super().__init__(length)
        self.position = 0
        self.first = 0

    def __iter__(self):
        start, self.first = self.first, 0
        for number in range(start, self.length):
            self.reads += 1
            self.position = number + 1
            yield number, random.random(), float(np.random.random())

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.first = state["position"]


def loader_of(source, batched=False, rank=0, world_size=1, seed=0, shuffle=True, **settings):
    return prepare_loader(
        "train",
        source,
        batched=batched,
        settings=settings if batched else {"batch_size": 3, **settings},
        seed=seed,
        shuffle=shuffle,
        training=True,
        placement=Placement(torch.device("cpu"), rank, world_size),
    )


def plain(batch):
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in batch]


def read(loader, epoch, start=0, stop=None):
    batches: list[list] = []
    iterator = iter(loader.iterate(epoch, start))
    while stop is None or start + len(batches) < stop:
        batch = next(iterator, None)
        if batch is None:
            break
        batches.append(plain(batch))
    return batches


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resume(state, source, elastic=False, **arguments):
    loader = loader_of(source, **arguments)
    return loader, loader.load_state_dict(through_a_file(state), elastic=elastic)


def test_a_state_is_of_plain_values():
    state = loader_of(Augmented(fingerprint="v1"), drop_last=True).state_dict(3, 2)

    assert through_a_file(state) == {
        "kind": "keyed",
        "epoch": 3,
        "batch_index": 2,
        "consumed": 6,
        "seed": 0,
        "batch_size": 3,
        "world_size": 1,
        "drop_last": True,
        "sampler": "shuffled",
        "samples": 29,
        "fingerprint": "v1",
    }


@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)])
def test_a_resumed_epoch_goes_on_where_it_was_at_every_batch(workers):
    before, after = workers
    loader = loader_of(Augmented(), num_workers=before)
    whole = [read(loader, epoch) for epoch in range(2)]
    batches = range(len(whole[1]) + 1) if workers == (0, 0) else (0, 4, 10)

    for batch in batches:
        read(loader, 1, stop=batch)
        resumed, reasons = resume(loader.state_dict(1, batch), Augmented(), num_workers=after)

        assert reasons == []
        assert read(resumed, 1, batch) == whole[1][batch:]
        assert read(resumed, 0) == whole[0]


def test_ten_resumes_are_as_good_as_none():
    whole = read(loader_of(Augmented()), 0)

    seen, state = [], loader_of(Augmented()).state_dict(0, 0)
    for stop in range(1, 11):
        loader, reasons = resume(state, Augmented())
        seen += read(loader, 0, stop - 1, stop)
        state = loader.state_dict(0, stop)
        assert reasons == []

    assert seen == whole
    assert state["consumed"] == 29


@pytest.mark.parametrize("world_sizes", [(2, 1), (2, 3), (1, 2), (3, 2)])
def test_another_number_of_processes_covers_the_rest_of_the_epoch_once(world_sizes):
    before, after = world_sizes
    old = [loader_of(Augmented(), rank=rank, world_size=before) for rank in range(before)]
    seen = [index for loader in old for batch in read(loader, 0, stop=2) for index in batch[0]]
    state = old[0].state_dict(0, 2)

    with pytest.raises(ResumeError, match=f"{before} processes, now {after}.*elastic=True"):
        resume(state, Augmented(), rank=0, world_size=after)
    new = [
        resume(state, Augmented(), elastic=True, rank=rank, world_size=after)
        for rank in range(after)
    ]
    rest = [[i for batch in read(loader, 0, 2) for i in batch[0]] for loader, _ in new]

    missing = 29 - 6 * before
    flat = [index for part in rest for index in part]
    assert sorted({*seen, *flat}) == list(range(29))
    assert set(seen) & set(flat) <= set(seen[: after - 1])  # the padding
    assert len(flat) == missing + -missing % after
    assert {reason for _, reasons in new for reason in reasons} == {
        f"'train': saved with {before} processes, now {after}, goes on at item {6 * before}"
    }


def test_after_an_elastic_resume_all_counts_are_of_samples():
    old = loader_of(Augmented(), world_size=2)
    read(old, 0, stop=2)
    one, _ = resume(old.state_dict(0, 2), Augmented(), elastic=True)
    counted = one.batches_in(0), one.batches_in(1), len(one)
    middle = read(one, 0, 2, stop=4)
    state = one.state_dict(0, 4)
    again, reasons = resume(state, Augmented())

    assert counted == (2 + 6, 10, 10)
    assert state["consumed"] == 12 + 6
    assert reasons == []
    assert read(again, 0, 4) == read(resume(old.state_dict(0, 2), Augmented(), True)[0], 0, 2)[2:]
    assert len(middle) == 2
    assert again.batches_in(0) == 8
    assert len(read(again, 1)) == 10


def test_another_batch_size_is_elastic_too():
    old = loader_of(Augmented())
    seen = [index for batch in read(old, 0, stop=4) for index in batch[0]]
    state = old.state_dict(0, 4)

    with pytest.raises(ResumeError, match="batch_size 3 -> 5"):
        resume(state, Augmented(), batch_size=5)
    new, reasons = resume(state, Augmented(), elastic=True, batch_size=5)

    seen += [index for batch in read(new, 0, 4) for index in batch[0]]
    assert sorted(seen) == list(range(29))
    assert reasons == ["'train': batch_size 3 -> 5, goes on at item 12"]


CHANGES = {
    "len": ({"source": Augmented(30)}, r"len\(dataset\) 29 -> 30"),
    "fingerprint": ({"source": Augmented(29, "b")}, "fingerprint of the dataset None -> 'b'"),
    "seed": ({"source": Augmented(), "seed": 1}, "seed 0 -> 1"),
    "drop_last": ({"source": Augmented(), "drop_last": True}, "drop_last False -> True"),
    "order": ({"source": Augmented(), "shuffle": False}, "sampler 'shuffled' -> 'sequential'"),
    "kind": ({"source": Batches(), "batched": True}, "kind of data keyed -> iterable"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_other_data_is_refused_with_the_ways_out(change, message):
    state = loader_of(Augmented()).state_dict(3, 2)

    for elastic in (False, True):
        with pytest.raises(ResumeError) as caught:
            resume(state, elastic=elastic, **change)

        caught.match(rf"^Cannot resume 'train' at epoch 3, batch 2: .*{message}")
        caught.match("put the old values back; or pass dataloader={'resume': 'epoch'}")


def test_all_that_changed_is_in_one_message():
    state = loader_of(Augmented()).state_dict(3, 2)

    with pytest.raises(ResumeError, match=r"seed 0 -> 1, len\(dataset\) 29 -> 5, .* now 2, batch_"):
        resume(state, Augmented(5), seed=1, world_size=2, batch_size=2)


def test_an_interrupted_epoch_can_be_begun_anew_with_other_data():
    state = loader_of(Augmented()).state_dict(3, 2)

    loader, reasons = resume(state, Augmented(7), resume="epoch")

    assert reasons == [
        "'train': len(dataset) 29 -> 7",
        "'train' begins epoch 3 anew: 6 items are seen twice",
    ]
    assert sorted(index for batch in read(loader, 3, 2) for index in batch[0]) == list(range(7))
    assert (loader.batches_in(3), len(loader)) == (5, 3)


def test_a_dataset_may_come_to_be_known_as_deterministic():
    loader = loader_of(Free())
    loader.kind = "keyed"

    resumed, reasons = resume(loader.state_dict(0, 3), Free())

    assert (resumed.kind, reasons) == ("deterministic", [])


def test_what_is_not_keyed_is_a_doubt_in_the_middle_of_an_epoch():
    loader = loader_of(Augmented(), keyed=False)
    doubts = [resume(loader.state_dict(0, n), Augmented(), keyed=False)[1] for n in (0, 3)]

    assert doubts == [[], ["keyed is False: what Augmented draws at random is not restored"]]


def test_an_iterable_cannot_begin_in_the_middle():
    state = loader_of(Batches(), batched=True).state_dict(3, 5)

    with pytest.raises(ResumeError) as caught:
        resume(state, Batches(), batched=True)

    assert str(caught.value) == (
        "Cannot resume 'train' at epoch 3, batch 5: Batches is read from its start, without "
        "state_dict()/load_state_dict(). The ways out: implement both methods; or pass "
        "dataloader={'resume': 'replay'} (re-reads 5 batches); or pass "
        "dataloader={'resume': 'epoch'} (repeats epoch 3 from its start)"
    )


def test_an_iterable_begins_an_epoch_without_ado():
    state = loader_of(Batches(), batched=True).state_dict(3, 0)

    assert resume(state, Batches(), batched=True)[1] == []


def test_an_iterable_can_be_replayed():
    whole = read(loader_of(Batches(), batched=True), 3)
    for batch in range(9):
        source = Batches()
        state = loader_of(Batches(), batched=True).state_dict(3, batch)

        loader, reasons = resume(state, source, batched=True, resume="replay")

        assert reasons == []
        assert read(loader, 3, batch) == whole[batch:]
        assert source.reads == 8


def test_an_iterable_can_begin_its_epoch_anew():
    whole = read(loader_of(Batches(), batched=True), 3)
    state = loader_of(Batches(), batched=True).state_dict(3, 5)

    loader, reasons = resume(state, Batches(), batched=True, resume="epoch")

    assert reasons == ["'train' begins epoch 3 anew: 5 items are seen twice"]
    assert read(loader, 3, 5) == whole


def test_a_replay_by_another_number_of_workers_would_be_another_epoch():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(9))

    state = loader_of(Stream(), num_workers=2).state_dict(0, 2)

    with pytest.raises(ResumeError, match="num_workers 2 -> 1"):
        resume(state, Stream(), num_workers=1, resume="replay")


def test_a_stateful_iterable_goes_on_from_its_state_and_draws_the_same():
    whole = read(loader_of(Stateful(), batched=True), 3)
    for batch in range(9):
        loader, source = loader_of(Stateful(), batched=True), Stateful()
        read(loader, 3, stop=batch)

        resumed, reasons = resume(loader.state_dict(3, batch), source, batched=True)

        assert (resumed.kind, reasons) == ("stateful", [])
        assert read(resumed, 3, batch) == whole[batch:]
        assert source.reads == 8 - batch
        assert read(resumed, 4) == read(loader_of(Stateful(), batched=True), 4)


def test_the_state_is_of_the_batch_in_hand_however_far_was_read_ahead():
    loader = loader_of(Stateful(), batched=True)
    read(loader, 0, stop=5)

    states = [loader.state_dict(0, batch)["stream"] for batch in (3, 4, 5)]

    assert states == [{"position": 3}, {"position": 4}, {"position": 5}]


def test_a_state_can_be_saved_again_before_anything_is_read():
    loader = loader_of(Stateful(), batched=True)
    read(loader, 0, stop=5)
    resumed, _ = resume(loader.state_dict(0, 5), Stateful(), batched=True)

    assert resumed.state_dict(0, 5) == loader.state_dict(0, 5)


def test_a_state_that_the_checkpoint_does_not_hold_is_missed():
    state = loader_of(Stateful(), batched=True, resume="replay").state_dict(3, 5)

    with pytest.raises(ResumeError, match="the checkpoint holds no state of it"):
        resume(state, Stateful(), batched=True)


def test_a_stateful_iterable_dataset_is_saved_without_workers_only():
    class Stream(Stateful, torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (number for number, *_ in super().__iter__())

    loader = loader_of(Stream())
    whole = [batch.tolist() for batch in loader.iterate(0)]
    next(iter(loader.iterate(0)))
    resumed, reasons = resume(loader.state_dict(0, 1), Stream())
    assert (loader.kind, reasons) == ("stateful", [])
    assert [batch.tolist() for batch in resumed.iterate(0, 1)] == whole[1:]

    state = loader_of(Stream(), num_workers=2).state_dict(0, 1)
    with pytest.raises(ResumeError, match=r"the state of .*Stream is spread over 2 workers"):
        resume(state, Stream(), num_workers=2)


def test_what_another_library_s_workers_draw_is_a_doubt():
    class TheirLoader(DataLoader):
        def __iter__(self):
            yield from super().__iter__()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    source = TheirLoader(Augmented(), num_workers=1)
    loader = loader_of(source, batched=True)
    assert len(read(loader, 0, stop=2)) == 2

    _, reasons = resume(loader.state_dict(0, 2), source, batched=True)

    assert len(reasons) == 1
    assert "what the workers of" in reasons[0]


def test_ranks_of_a_stateful_iterable_go_on_with_another_number_of_them():
    old = [loader_of(Stateful(9), batched=True, rank=rank, world_size=2) for rank in range(2)]
    seen = [batch[0] for loader in old for batch in read(loader, 0, stop=2)]

    new = [
        resume(old[0].state_dict(0, 2), Stateful(9), True, batched=True, rank=rank, world_size=3)
        for rank in range(3)
    ]

    seen += [batch[0] for loader, _ in new for batch in read(loader, 0, 2)]
    assert sorted(seen) == list(range(7))  # 7 and 8 do not suffice for three


# How many samples, and how far


class Claims(torch.utils.data.IterableDataset):
    """Says that it has eight samples, and gives twelve."""

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(range(12))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_read_to_its_end_whatever_it_says_of_its_length(workers):
    loader = loader_of(Claims(), batch_size=4, num_workers=workers)

    batches = [batch.tolist() for batch in loader.iterate(0)]

    assert [number for batch in batches for number in batch] == list(range(12))
    assert not loader.is_length_exact


class Understated(torch.utils.data.Sampler):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter(range(9))


def test_so_is_a_sampler_of_the_user():
    loader = loader_of(DataLoader(Augmented(), 2, sampler=Understated()), batched=True)

    assert [n for batch in read(loader, 0) for n in batch[0]] == list(range(9))
    assert not loader.is_length_exact
    assert [loader.samples_of(index) for index in range(5)] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("source", [Claims(), DataLoader(Augmented(), 2, sampler=Understated())])
def test_a_training_uses_all_samples_of_them(source):
    import danling as dl

    seen: list[float] = []

    class Counting(dl.AccelerateRunner):
        def train_step(self, batch):
            numbers = batch if isinstance(batch, torch.Tensor) else batch[0]
            seen.extend(numbers.tolist())
            return self.model(numbers.float().reshape(-1, 1)).sum()

    model = torch.nn.Linear(1, 1)
    name = "dataloaders" if isinstance(source, DataLoader) else "datasets"
    data: dict[str, Any] = {name: {"train": source}}
    runner = Counting(
        {"seed": 0, "max_epochs": 2, "dataloader": {"batch_size": 2}, "accelerate": {"cpu": True}},
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        default_callbacks=False,
        **data,
    )
    runner.train()

    assert seen == 2 * list(range(12 if name == "datasets" else 9))
    assert runner.epoch == 2


class ByEpoch(torch.utils.data.Sampler):
    """Has one sample more in every epoch."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 4 + self.epoch

    def __iter__(self):
        return iter(range(4 + self.epoch))


def test_a_sampler_is_asked_for_its_length_after_it_has_heard_of_the_epoch():
    loader = loader_of(DataLoader(Augmented(), 1, sampler=ByEpoch()), batched=True)

    lengths = [(loader.batches_in(epoch), len(read(loader, epoch))) for epoch in (3, 0, 1)]

    assert lengths == [(7, 7), (4, 4), (5, 5)]


class Graph:
    """A batch that knows how to move itself."""

    def __init__(self, samples):
        self.nodes = torch.zeros(5 * len(samples), 2)

    def to(self, device, non_blocking=False):
        return self


COLLATES = {
    "images of different sizes": lambda samples: [torch.zeros(3, 4 + n) for n in range(2)],
    "object": Graph,
    "graph": lambda samples: {"edge_index": torch.zeros(2, 9), "y": torch.zeros(1)},
    "list of dicts": lambda samples: [{"boxes": torch.zeros(7, 4)} for _ in range(1)],
    "time first": lambda samples: torch.zeros(11, len(samples), 4),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", COLLATES.values(), ids=COLLATES)
def test_the_loader_knows_how_many_samples_a_batch_has(collate, workers):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(11))

    options = {"collate_fn": collate, "num_workers": workers}
    if workers:
        options["multiprocessing_context"] = "fork"
    expected = [[3, 3, 3, 2], [3, 2]]

    for source in (Augmented(11), Stream()):
        if isinstance(source, Stream) and workers:
            continue  # each worker reads the whole stream
        loader = loader_of(source, **options)
        for start, counts in zip((0, 2), expected, strict=True):
            numbered = enumerate(loader.iterate(0, start), start)
            assert [loader.samples_of(index) for index, _ in numbered] == counts


def test_a_batch_sampler_of_the_user_says_how_many_samples_there_are():
    sizes = [[0], [1, 2, 3], [4, 5]]
    for workers in (0, 2):
        given = DataLoader(Augmented(), batch_sampler=sizes, num_workers=workers)
        loader = loader_of(given, batched=True)

        numbered = enumerate(loader.iterate(0))
        assert [loader.samples_of(index) for index, _ in numbered] == [1, 3, 2]


def test_ranks_know_the_samples_of_their_own_batches():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(16))

    for source in (Augmented(), Stream()):
        for rank in range(2):
            loader = loader_of(source, rank=rank, world_size=2)
            counts = [
                (loader.samples_of(index), len(batch[0] if isinstance(batch, list) else batch))
                for index, batch in enumerate(loader.iterate(0))
            ]
            assert [known for known, _ in counts] == [found for _, found in counts]


def test_of_ready_made_batches_nobody_knows():
    for source in ([torch.zeros(3)], Batches(), DataLoader(Augmented(), batch_size=None)):
        loader = loader_of(source, batched=True)
        next(iter(loader.iterate(0)))

        assert loader.samples_of(0) is None


# Two iterations of one split


@pytest.mark.parametrize("source", [Augmented(), Free()])
def test_a_second_iteration_in_an_epoch_begins_at_its_start(source):
    loader = loader_of(source)
    whole = read(loader, 0)

    resumed, _ = resume(loader.state_dict(0, 6), source)
    rest, second = read(resumed, 0, 6), read(resumed, 0)
    both = list(zip(loader.iterate(0), loader.iterate(0), strict=True))

    assert (rest, second) == (whole[6:], whole)
    assert [[plain(batch) for batch in side] for side in zip(*both, strict=True)] == [whole, whole]


# The order of a run that was begun before orders were computed by index


def test_a_run_that_stored_its_order_goes_on_in_it():
    data = range(70_000)
    state = loader_of(data, batch_size=7).state_dict(0, 3)
    assert state.pop("shuffle") == "by index"

    loader, reasons = resume(state, data, batch_size=7)

    generator = torch.Generator().manual_seed(derive(derive(0, "train"), "order", 5))
    stored = torch.randperm(70_000, generator=generator)
    assert reasons == []
    assert next(iter(loader.iterate(5, 9000))).tolist() == stored[63_000:63_007].tolist()
    assert "shuffle" not in loader.state_dict(0, 3)
    fresh, _ = resume(loader_of(data, batch_size=7).state_dict(0, 3), data, batch_size=7)
    assert next(iter(fresh.iterate(5))).tolist() != stored[:7].tolist()
