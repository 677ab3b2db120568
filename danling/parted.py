"""Checkpoints of which each process writes and reads its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danling import shards, zero_files
from danling.compatibility import part_problems
from danling.sharding import is_engine, is_sharded, model_state, saves_whole

if TYPE_CHECKING:
    from danling.checkpoint import CheckpointStore
    from danling.distributed import World
    from danling.runner import AccelerateRunner
    from danling.shards import Parts

__all__ = ["read_shards", "split", "write_shards"]


def split(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Parts | None]:
    """The head of a checkpoint, and what each process is to write its part of."""
    if is_engine(runner.model):
        return zero_files.split(runner.model, checkpoint)
    if saves_whole(runner):
        return checkpoint, None
    from danling import dcp

    head, tensors = dcp.split(checkpoint)
    return head, tensors or None


def write_shards(
    world: World,
    store: CheckpointStore,
    global_step: int,
    parts: Parts | None,
) -> shards.Record | None:
    """Write the parts that `split` gave; returns what the commit of the head wants to know.

    A collective.

    Raises:
        CheckpointError: It cannot be written, by any of the processes; what it left is removed, by
            the next start if not now.
    """
    if parts is None:
        return None
    directory = world.on_main(lambda: store.new_shards(global_step))
    try:
        names = parts.write(directory, world)
        sealed = world.gather(world.together(lambda: shards.seal(directory, names)))
        return world.on_main(lambda: shards.finish(directory, sealed))
    except BaseException:
        if world.rank == 0:
            shards.remove(directory)
        raise


def read_shards(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path
) -> Mapping[str, Any]:
    """A checkpoint with what is in its shards: of a sharded model the parts of this process.

    A collective.

    Raises:
        CheckpointError: They cannot be read.
    """
    if "shards" not in checkpoint:
        return checkpoint
    directory = shards.directory_of(path, checkpoint["shards"])
    if "engine" in checkpoint:
        fits = is_engine(runner.model) and not part_problems(runner, checkpoint)
        engine = runner.model if fits else None
        return zero_files.read(engine, checkpoint, directory, runner.world)
    from danling import dcp

    like, world = _parts_of(runner), runner.world if is_sharded(runner.model) else None
    parts = dcp.SPLIT if runner.optimization.optimizers else ("model",)
    return runner.world.together(lambda: dcp.read(checkpoint, directory, like, world, parts))


def _parts_of(runner: AccelerateRunner) -> Callable[[tuple[Any, ...]], Tensor | None]:
    """Which of its parameters, of a sharded model, a tensor in a checkpoint is for."""
    from torch.distributed.tensor import DTensor

    model, optimizers = runner.model, runner.optimization.optimizers
    weights = {} if model is None else model_state(model, runner.unwrapped_model, whole=False)
    parameters = {
        name: dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
        for name, optimizer in optimizers.items()
    }

    def like(place: tuple[Any, ...]) -> Tensor | None:
        match place:
            case ("model", name):
                found = weights.get(name)
            case ("optimizer", "state", int(number), _):
                found = parameters.get("", {}).get(number)
            case ("optimizer", "by_name", name, "state", int(number), _):
                found = parameters.get(name, {}).get(number)
            case _:
                found = None
        return found if isinstance(found, DTensor) else None

    return like
