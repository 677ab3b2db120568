"""One save of a checkpoint, from what a runner has to what is on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danling.sharding import split, write_shards
from danling.snapshot import Snapshot, snapshot

if TYPE_CHECKING:
    from danling.checkpoint import CheckpointStore
    from danling.distributed import World
    from danling.runner import AccelerateRunner

__all__ = ["Save"]


@dataclass(frozen=True)
class Save:
    """One checkpoint to write: under which names, what is in it, of when it is, and why.

    Attributes:
        names: Of the file.
        contents: What `runner.state_dict()` gave, or a snapshot of it.
        tensors: Those of it of which each process writes its part.
        global_step: Optimizer steps completed.
        epoch: Epochs completed.
        metrics: Numbers for people, and for the choice of what to keep.
    """

    names: tuple[str, ...]
    contents: Any
    tensors: Mapping[tuple[Any, ...], Tensor]
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

    def copied(self, world: World) -> Save:
        """The same in memory that training does not change: what this process is to write.

        A collective: where it fails on one process, none goes on to write.
        """
        return world.together(lambda: self._copied(world.rank == 0))

    def _copied(self, is_main: bool) -> Save:
        tensors = self.tensors
        if tensors:
            from danling import dcp

            tensors = dcp.copied(tensors)
        contents = snapshot(self.contents) if is_main else Snapshot({})
        return replace(self, contents=contents, tensors=tensors)

    def commit(self, world: World, store: CheckpointStore) -> Path:
        """Write it; a collective."""
        shards = write_shards(world, store, self.global_step, self.tensors)

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
