"""One save of a checkpoint, from what a runner has to what is on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danling.checkpoint.background import Snapshot, snapshot
from danling.checkpoint.sharded.state import split, write_shards

if TYPE_CHECKING:
    from danling.checkpoint.sharded.shards import Parts
    from danling.checkpoint.store import CheckpointStore
    from danling.distributed.world import World
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["Save"]


@dataclass(frozen=True)
class Save:
    """One checkpoint to write: under which names, what is in it, of when it is, and why.

    Attributes:
        names: Of the file.
        contents: What `runner.state_dict()` gave, or a snapshot of it.
        parts: What each process writes its part of, if there is any.
        global_step: Optimizer steps completed.
        epoch: Epochs completed.
        metrics: Numbers for people, and for the choice of what to keep.
    """

    names: tuple[str, ...]
    contents: Any
    parts: Parts | None
    global_step: int
    epoch: int
    metrics: dict[str, float]

    @classmethod
    def of(
        cls,
        runner: AccelerateRunner,
        names: tuple[str, ...],
        contents: Any,
        reasons: Mapping[str, float] | None = None,
    ) -> Save:
        """A save of this point of a run, with the reasons to keep it."""
        metrics = runner.score_metrics() | dict(reasons or {})
        return cls(names, *split(runner, contents), runner.global_step, runner.epoch, metrics)

    @property
    def can_wait(self) -> bool:
        """Whether a copy of it may be written while training goes on."""
        return self.parts is None or self.parts.can_wait

    def copied(self, world: World) -> Save:
        """The same in memory that training does not change: what this process is to write.

        A collective: where it fails on one process, none goes on to write.
        """

        def copy() -> Save:
            contents = snapshot(self.contents) if world.rank == 0 else Snapshot({})
            parts = None if self.parts is None else self.parts.copied()
            return replace(self, contents=contents, parts=parts)

        return world.together(copy)

    def commit(self, world: World, store: CheckpointStore) -> Path:
        """Write it; a collective."""
        shards = write_shards(world, store, self.global_step, self.parts)

        def commit() -> Path:
            return store.commit(
                self.contents,
                self.names,
                global_step=self.global_step,
                epoch=self.epoch,
                metrics=self.metrics,
                shards=shards,
            )

        return world.on_main(commit)
