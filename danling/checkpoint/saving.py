"""Saves of a run, each from its contents to the disk: at once, or in a thread of each process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danling.checkpoint.background import AsyncWriter, Snapshot, snapshot
from danling.checkpoint.sharded.state import write_shards
from danling.distributed.world import World
from danling.errors import CheckpointError

if TYPE_CHECKING:
    from danling.checkpoint.sharded.shards import ShardedTensors
    from danling.checkpoint.store import CheckpointStore

__all__ = ["Save", "Saver"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Save:
    """One checkpoint to write: under which names, what is in it, of when it is, and why.

    Attributes:
        names: The names of the file.
        contents: The head of the checkpoint, or a snapshot of it.
        parts: The tensors of which each process writes its part, if there are any.
        global_step: The number of optimizer steps completed.
        epoch: The number of epochs completed.
        metrics: Numbers for people, and for the choice of what to keep.
    """

    names: tuple[str, ...]
    contents: Any
    parts: ShardedTensors | None
    global_step: int
    epoch: int
    metrics: dict[str, float]

    @property
    def can_wait(self) -> bool:
        """Whether a copy of it may be written while training goes on."""
        return self.parts is None or self.parts.can_wait

    def copied(self, world: World, last: Snapshot | None = None) -> Save:
        """A copy in memory that training does not change: the part that this process writes.

        A collective: where it fails on one process, none goes on to write.

        Args:
            world: The processes of the run.
            last: The contents of an earlier copy that is written, whose memory is taken over.
        """

        def copy() -> Save:
            contents = snapshot(self.contents, last) if world.rank == 0 else Snapshot({})
            parts = None if self.parts is None else self.parts.copied()
            return replace(self, contents=contents, parts=parts)

        return world.together(copy)

    def commit(self, world: World, store: CheckpointStore) -> Path:
        """Write it; durable when this returns. A collective.

        Raises:
            CheckpointError: It could not be written; what was there before is intact.
        """
        shards = None
        if self.parts is not None:
            shards = write_shards(world, store, self.global_step, self.parts)
        commit = partial(
            store.commit,
            self.contents,
            self.names,
            global_step=self.global_step,
            epoch=self.epoch,
            metrics=self.metrics,
            shards=shards,
        )
        return commit() if world.size == 1 else world.on_main(commit)


class Saver:
    """Writes saves, at once or in a thread of each process, and decides what a failed one does.

    Args:
        world: The processes of the run.
        on_error: Whether a save that fails raises, or is counted and logged.
        logger: The log of the run.

    Attributes:
        failures: The number of saves that failed since `open`.
    """

    def __init__(
        self,
        world: World,
        on_error: Literal["raise", "warn"] = "raise",
        logger: logging.Logger | None = None,
    ) -> None:
        self.failures = 0
        self._on_error = on_error
        self._logger = logger or _logger
        self._world = world
        self._threads = world  # the same processes, as the threads agree
        self._writer: AsyncWriter[Path] | None = None
        self._last: Snapshot | None = None

    def open(self, *, asynchronous: bool) -> None:
        """Begin the saves of a training. A collective.

        Args:
            asynchronous: Whether files are written in a thread while training goes on.
        """
        self.failures = 0
        if asynchronous:
            self._writer, self._threads = AsyncWriter(), self._world.twin()

    @property
    def is_asynchronous(self) -> bool:
        """Whether a thread writes."""
        return self._writer is not None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way in the thread of this process."""
        return self._writer is not None and self._writer.busy

    def save(
        self, save: Save, store: CheckpointStore, tidy: Callable[[], object] | None = None
    ) -> list[Path]:
        """Write a save, or let a thread do it. A collective.

        Args:
            save: The save to be written.
            store: The store that it is written to.
            tidy: A function that the main process calls after the commit, as to remove older files.

        Returns:
            The files that are on the disk now; `deliver` tells of those that a thread writes.

        Raises:
            CheckpointError: It could not be written, and `on_error` is "raise".
        """
        with self._counting_failures():
            if self._writer is None or not save.can_wait:
                return [_commit(self._world, save, store, tidy)]
            self._writer.settle()  # before the memory of what it writes is written over
            copied = save.copied(self._world, self._last)
            self._last = copied.contents
            self._writer.submit(partial(_commit, self._threads, copied, store, tidy))
        return []

    def deliver(self, *, wait: bool = False) -> list[Path]:
        """The files that threads have written since the last call. A collective.

        Args:
            wait: Whether to wait for the one under way.

        Raises:
            CheckpointError: A save failed, and `on_error` is "raise".
        """
        writer = self._writer
        if writer is None or not (wait or not self._world.maximum([writer.busy])[0]):
            return []
        with self._counting_failures():
            return writer.collect()
        return []

    def close(self) -> None:
        """Wait for the thread, and let it end."""
        writer, self._writer, self._threads = self._writer, None, self._world
        if writer is not None:
            writer.settle()
            self._last = None
            writer.check()

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            if self._on_error == "raise":
                raise
            self.failures += 1
            self._logger.warning("save failed (%d so far): %s", self.failures, error)


def _commit(
    world: World, save: Save, store: CheckpointStore, tidy: Callable[[], object] | None
) -> Path:
    path = save.commit(world, store)
    if tidy is not None:
        world.on_main(tidy)
    return path
