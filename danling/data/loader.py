"""The loader of a split: batches as a pure function of (seed, epoch, position).

What a loader promises depends on what it is given; its `kind` says which.

| kind | given | resumed in the middle of an epoch it |
| --- | --- | --- |
| keyed | a dataset that is read by index | goes on at the next sample, randomness included |
| deterministic | one that is known, or says, to draw nothing; a list of batches | does so too |
| unkeyed | `dataloader={"keyed": False}` | gives the same samples, but draws anew at random |
| stateful | an iterable with `state_dict` | goes on from that state |
| iterable | any other iterable | raises, unless `resume` is `"replay"` or `"epoch"` |

`dataloader={"resume": "replay"}` reads the batches that were done and throws them away;
`"epoch"` begins the interrupted epoch anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch

from danling.data.limits import Amount, Endless, Nothing, limited
from danling.data.sources import ListSource, Source, StreamSource
from danling.errors import DataError, ResumeError
from danling.transfer import transferred

__all__ = ["Loader", "Resume", "with_notes"]


Resume = Literal["exact", "replay", "epoch"]

# What must be as it was, by the name that the message gives it.
FIXED = {
    "seed": "seed",
    "sampler": "sampler",
    "drop_last": "drop_last",
    "samples": "len(dataset)",
    "fingerprint": "fingerprint of the dataset",
    "workers": "num_workers",
}


class _Origin(NamedTuple):
    """The place at which the epoch that is being read was begun or resumed."""

    epoch: int
    batch: int
    offset: int


class Loader:
    """The batches of a split, on this rank and on the device.

    Args:
        split: The name of the split.
        source: The source of the batches.
        batch_size: The number of samples of a batch on this rank; None where the user makes the
            batches.
        seed: The seed of the run.
        resume: The treatment of a source that cannot begin in the middle.
        device: The device that batches go to.

    Attributes:
        kind: The meaning of a resume of this loader, as the table of the module says.
    """

    def __init__(
        self,
        split: str,
        source: Source,
        *,
        batch_size: int | None,
        seed: int,
        resume: Resume,
        device: torch.device,
    ) -> None:
        self.split = split
        self.kind = source.kind
        self.batch_size = batch_size
        self._source = source
        self._seed = seed
        self._resume = resume
        self._device = device
        self._origin = _Origin(-1, 0, 0)
        self._amount = Amount()
        self._endless: Endless | None = None
        self._cycle: Endless | None = None  # of an epoch in which it begins anew where it ends

    def limit(self, amount: Amount, *, training: bool) -> Self:
        """Read so much of each epoch; returns itself.

        Args:
            amount: The number of batches that are read.
            training: Whether a stream that is limited is read on from epoch to epoch.

        Raises:
            DataError: It is a share of an unknown number, or less than one batch.
        """
        self._amount = amount
        is_cut = self.length != self._length(self._source.items)
        if training and is_cut and self.kind in ("iterable", "stateful"):
            self._endless = Endless(self._source)
        return self

    @property
    def samples(self) -> int | None:
        """The number of items of an epoch over all ranks; None when nobody knows.

        An item is a sample, or a batch where the user makes the batches.
        """
        return self._source.items

    @property
    def length(self) -> int | None:
        """The number of batches of a whole epoch on this rank; None when nobody knows."""
        return self._limited(self._length(self._source.items))

    @property
    def lengths(self) -> list[int] | None:
        """The number of batches of a whole epoch on each rank; in training all are the same."""
        items, sharding = self._source.items, self._source.sharding
        if items is None:
            return None
        lengths = [sharding.count(items, rank) for rank in range(sharding.world_size)]
        most = self._limited(max(lengths))
        return [length if most is None else min(length, most) for length in lengths]

    def _length(self, items: int | None) -> int | None:
        return None if items is None else self._source.sharding.count(items)

    def _limited(self, length: int | None) -> int | None:
        """The number of batches that are read, of a number that there are on this rank."""
        return self._amount.of(length, self.split)

    def __len__(self) -> int:
        length = self.length
        if length is None:
            raise TypeError(f"nobody knows how many batches {self.split!r} has")
        return length

    @property
    def is_length_exact(self) -> bool:
        """Whether an epoch ends where its length says; else it ends where the data does."""
        return self._endless is not None or self._source.is_length_exact

    @property
    def is_length_fixed(self) -> bool:
        """Whether all epochs have the same length: no sampler is told the epoch."""
        return self._source.is_length_fixed

    def batches_in(self, epoch: int) -> int | None:
        """The number of batches of this epoch on this rank; None when nobody knows.

        It is not `length` after a resume with other ranks, and where a sampler says another length
        after it has heard of the epoch.
        """
        if self._endless is not None:
            return self.length
        items, sharding = self._source.items_in(self._epoch_read(epoch)), self._source.sharding
        if items is None or self._origin.epoch != epoch:
            return self._limited(self._length(items))
        return self._limited(self._origin.batch + sharding.count(items - self._origin.offset))

    def done(self, places: Mapping[str, int]) -> int:
        """The number of batches that were read, of so many of each split."""
        return places.get(self.split, 0)

    @property
    def tells_samples(self) -> bool:
        """Whether it may know the number of samples of a batch."""
        return not isinstance(self._source, ListSource | Nothing)

    def samples_of(self, batch_index: int) -> int | None:
        """The number of samples that were read for a batch of the epoch that is being read.

        It is known where the loader makes the batches of samples, or a batch sampler says which,
        and from when the batch is handed out until a few batches later; else it is None.

        Example:
            >>> from danling.data.prepare import Placement, prepare_loader
            >>> loader = prepare_loader("val", [1.0, 2.0, 3.0], batched=False, training=False,
            ...     settings={"batch_size": 2}, seed=0, shuffle=False,
            ...     placement=Placement(torch.device("cpu")))
            >>> [loader.samples_of(index) for index, _ in enumerate(loader.iterate(epoch=0))]
            [2, 1]
        """
        return self._source.samples_at(*self._locate(self._origin.epoch, batch_index))

    @property
    def begins_anew(self) -> bool:
        """Whether all batches of an epoch that is cycled were read, and the first one again."""
        return self._cycle is not None and len(self._cycle.starts) > 1

    def iterate(self, epoch: int, start: int = 0, *, cycles: bool = False) -> Iterator[Any]:
        """The batches of an epoch from number `start` on; batches before it are not read.

        Neither this nor anything that the dataset does changes a random generator of this process.

        Args:
            epoch: The epoch.
            start: The number of the first batch.
            cycles: Whether it begins anew where it ends, in another order.
        """
        if not cycles:
            self._cycle = None
        elif self._cycle is None or self._cycle.epoch != self._epoch_read(epoch):
            most = None if self._is_whole else self._limited(self._length(self._source.items))
            self._cycle = Endless(self._source, self._epoch_read(epoch), most)
        offset = self._offset(epoch, start)
        self._origin = _Origin(epoch, 0, 0) if cycles else _Origin(epoch, start, offset)
        number = self.batches_in(epoch)
        left = None if number is None or self._is_whole or cycles else max(number - start, 0)
        if self._cycle is not None:
            batches = self._cycle.read(start)
        elif self._endless is not None:
            batches = self._endless.read(self._number(epoch, start))
        else:
            batches = self._source.batches(*self._locate(epoch, start))
        batches = limited(batches, left)
        if workers := self._source.workers:
            data = f"epoch {epoch} of {self.split!r} ({self._source.name}, {workers} workers)"
            batches = with_notes(batches, data, start)
        return transferred(batches, self._device)

    def positions(self, batch_index: int) -> list[int]:
        """The places of a batch's items in the global order of the epoch that is being read.

        Sorted by position, the batches of all ranks are in the order of the epoch.
        """
        offset = self._offset(self._origin.epoch, batch_index)
        return list(self._source.sharding.positions(offset, self._source.items))

    def state_dict(self, epoch: int, batch_index: int) -> dict[str, Any]:
        """The state to go on from after `batch_index` batches of an epoch, in plain values."""
        _, offset = self._locate(epoch, batch_index)
        passes = self._passes(epoch)
        if passes is not None:
            known = min(self._number(epoch, batch_index), passes.known)
            _, offset = passes.locate(known)
        sharding = self._source.sharding
        state: dict[str, Any] = {
            "kind": self.kind,
            "epoch": epoch,
            "batch_index": batch_index,
            "consumed": offset if self.samples is None else min(offset, self.samples),
            "seed": self._seed,
            "batch_size": self.batch_size,
            "world_size": sharding.world_size,
            "drop_last": sharding.drop_last,
            **self._source.identity,
        }
        if passes is not None:
            state |= {"passes": list(passes.starts), "known": known}
        if self._endless is not None:
            state["limit"] = self.length
        if isinstance(self._source, StreamSource) and self.kind == "stateful" and offset > 0:
            state["stream"] = self._source.state_at(offset)
        return state

    def load_state_dict(self, state: Mapping[str, Any], elastic: bool = False) -> list[str]:
        """Take up what `state_dict` gave, so that `iterate(epoch, batch_index)` goes on there.

        Args:
            state: The state of the same split.
            elastic: Whether another number of processes, or another batch size, covers the rest of
                the epoch. Every remaining sample is then seen once.

        Returns:
            Why the batches to come may differ from those of a run that was never interrupted; empty
            when they are the same, bit for bit.

        Raises:
            ResumeError: The data is not what it was, or cannot be taken up there.
        """
        epoch, batch, offset = state["epoch"], state["batch_index"], state["consumed"]
        fixed, elastic_changes = self._changes(state)
        if self._resume == "epoch":
            self._origin = _Origin(epoch, batch, 0)
            reasons = [f"{self.split!r}: {change}" for change in fixed + elastic_changes]
            if batch:
                reasons.append(
                    f"{self.split!r} begins epoch {epoch} anew: {offset} items are seen twice"
                )
            return reasons
        if fixed or (elastic_changes and not elastic):
            raise self._refusal(state, fixed, elastic_changes)
        self._source.take_up(state)
        if "passes" in state and self._endless is None:
            most = None if self._is_whole else self._limited(self._length(self._source.items))
            self._cycle = Endless(self._source, self._epoch_read(epoch), most)
        if (passes := self._passes(epoch)) is not None:
            passes.take_up(state["passes"], state["known"])
        if offset and isinstance(self._source, StreamSource):
            self._take_up(self._source, state)
        self._origin = _Origin(epoch, batch, offset)
        if self._cycle is not None:
            self._origin = _Origin(epoch, 0, 0)
        reasons = [
            f"{self.split!r}: {change}, goes on at item {offset}" for change in elastic_changes
        ]
        if state.get("draws_by_itself"):
            reasons.append(
                f"what {self._source.name} drew from a random generator of its own is not restored"
            )
        return reasons + (self._source.doubts if batch else [])

    @property
    def _is_whole(self) -> bool:
        """Whether all there is of an epoch is read."""
        return self._amount.limit is None and self._amount.most is None

    def _passes(self, epoch: int) -> Endless | None:
        """The source that reads pass after pass in an epoch, if there is one."""
        if self._cycle is not None and self._cycle.epoch == self._epoch_read(epoch):
            return self._cycle
        return self._endless

    def _number(self, epoch: int, batch: int) -> int:
        """The number of a batch among those that are read pass after pass."""
        if self._amount.repeats or self._passes(epoch) is not self._endless:
            return batch
        return epoch * (self.length or 0) + batch

    def _epoch_read(self, epoch: int) -> int:
        """The epoch of the source that an epoch reads."""
        return 0 if self._amount.repeats else epoch

    def _locate(self, epoch: int, batch: int) -> tuple[int, int]:
        """The epoch of the source that a batch is in, and the number of items before it there."""
        if (passes := self._passes(epoch)) is not None:
            return passes.locate(self._number(epoch, batch))
        return self._epoch_read(epoch), self._offset(epoch, batch)

    def _offset(self, epoch: int, batch: int) -> int:
        """The number of items before a batch in the global order of the epoch."""
        origin, whole = self._origin, self._source.sharding.whole
        if origin.epoch == epoch and batch >= origin.batch:
            return origin.offset + (batch - origin.batch) * whole
        return batch * whole

    def _changes(self, state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The differences from the saved state: fatal ones, and those that elastic allows."""
        now = self.state_dict(epoch=0, batch_index=0)
        fixed = [
            f"{name} {state.get(key)!r} -> {now.get(key)!r}"
            for key, name in FIXED.items()
            if state.get(key) != now.get(key)
        ]
        if state.get("limit") != now.get("limit"):
            fixed.append(f"limit_batches {state.get('limit')} -> {now.get('limit')}")
        if "passes" in state and state["world_size"] != now["world_size"]:
            fixed.append(f"processes {state['world_size']} -> {now['world_size']}")
        streams = {"iterable", "stateful"}
        if (state["kind"] in streams) != (self.kind in streams):
            fixed.insert(0, f"kind of data {state['kind']} -> {self.kind}")
        elastic = []
        if state["world_size"] != now["world_size"]:
            elastic.append(f"saved with {state['world_size']} processes, now {now['world_size']}")
        if state["batch_size"] != now["batch_size"]:
            batch_size = f"batch_size {state['batch_size']} -> {now['batch_size']}"
            (fixed if self.kind in streams else elastic).append(batch_size)
        return fixed, elastic

    def _refusal(
        self, state: Mapping[str, Any], fixed: list[str], elastic: list[str]
    ) -> ResumeError:
        ways = ["put the old values back"]
        if not fixed:
            ways.append(
                f"pass elastic=True to continue at global sample {state['consumed']} "
                "(covers the rest of the epoch once, but not bit for bit as before)"
            )
        return self._error(state, ", ".join(fixed + elastic), ways)

    def _take_up(self, source: StreamSource, state: Mapping[str, Any]) -> None:
        batch = state["batch_index"]
        if self.kind == "stateful" and "stream" in state:
            source.hold_state(state["consumed"], state["stream"])
        elif self._resume != "replay":
            problem, remedy = source.obstacle
            if self.kind == "stateful":
                problem, remedy = "the checkpoint holds no state of it", "take another checkpoint"
            again = f"pass dataloader={{'resume': 'replay'}} (re-reads {batch} batches)"
            raise self._error(state, problem, [remedy, again])

    def _error(self, state: Mapping[str, Any], problem: str, ways: list[str]) -> ResumeError:
        epoch, batch = state["epoch"], state["batch_index"]
        ways.append(f"pass dataloader={{'resume': 'epoch'}} (repeats epoch {epoch} from its start)")
        return ResumeError(
            f"Cannot resume {self.split!r} at epoch {epoch}, batch {batch}: {problem}. "
            f"The ways out: {'; or '.join(ways)}"
        )


_NOTICING = 1.0  # seconds for the signal of a process that is ending


def with_notes(batches: Iterator[Any], reading: str, first: int) -> Iterator[Any]:
    """The batches; an error on the way to the next one says which one it was.

    What PyTorch raises for a worker that was killed, or that took too long, tells neither.

    Args:
        batches: The batches of a `DataLoader` with workers.
        reading: The name of the data.
        first: The number of the first batch.

    Raises:
        DataError: A worker is gone, and PyTorch has not noticed it yet.

    Example:
        >>> list(with_notes(iter("ab"), "'train'", 0))
        ['a', 'b']
    """
    number = first
    try:
        for batch in batches:
            yield batch
            number += 1
    except Exception as error:
        # the pipe to a worker is broken; what a dataset raises there names the worker
        if isinstance(error, (ConnectionError, EOFError)) and "DataLoader worker" not in str(error):
            raise DataError(
                f"a DataLoader worker has ended while batch {number} of {reading} was read: it was "
                "killed, perhaps for want of memory"
            ) from _death(error)
        error.add_note(f"while batch {number} of {reading} was read")
        raise


def _death(error: Exception) -> Exception:
    """The error that PyTorch raises wherever the signal finds the program: here, not in a hook."""
    try:
        time.sleep(_NOTICING)
    except RuntimeError as death:
        return death
    return error
