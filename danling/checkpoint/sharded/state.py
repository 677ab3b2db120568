"""Checkpoints of which each process writes and reads its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from danling.checkpoint.sharded import deepspeed, shards
from danling.distributed.sharding import is_engine, is_sharded

if TYPE_CHECKING:
    from danling.checkpoint.sharded.shards import Parts
    from danling.checkpoint.store import CheckpointStore
    from danling.distributed.world import World
    from danling.runner.accelerate import AccelerateRunner

__all__ = [
    "load_model_state",
    "load_optimizer_state",
    "model_state",
    "optimizer_state",
    "read_shards",
    "saves_whole",
    "split",
    "write_shards",
]


def split(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Parts | None]:
    """The head of a checkpoint, and what each process is to write its part of."""
    if is_engine(runner.model):
        return deepspeed.split(runner.model, checkpoint)
    if saves_whole(runner):
        return checkpoint, None
    from danling.checkpoint.sharded import dcp

    head, tensors = dcp.split(checkpoint)
    return head, tensors or None


def write_shards(
    world: World,
    store: CheckpointStore,
    global_step: int,
    parts: Parts | None,
) -> shards.Manifest | None:
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
        from danling.runner.compatibility import part_problems

        fits = is_engine(runner.model) and not part_problems(runner, checkpoint)
        engine = runner.model if fits else None
        return deepspeed.read(engine, checkpoint, directory, runner.world)
    from danling.checkpoint.sharded import dcp

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


def saves_whole(runner: AccelerateRunner) -> bool:
    """Whether a checkpoint is one file, also where each process holds a part of the weights."""
    if is_engine(runner.model):
        return False
    if not is_sharded(runner.model):
        return True
    plugin = getattr(runner.accelerator.state, "fsdp_plugin", None)
    chosen = getattr(getattr(plugin, "state_dict_type", None), "name", "")
    return (runner.config.state_dict_type or chosen.lower()).startswith("full")


def model_state(model: nn.Module, plain: nn.Module, whole: bool = True) -> dict[str, Any]:
    """The weights under the names of the plain model.

    Of a sharded model the main process gets the whole, and the others nothing: it is a collective.
    If not `whole`, each gets the part that it has.
    """
    if is_engine(model):
        return deepspeed.weights_of(model) if whole else deepspeed.places(plain)
    if not is_sharded(model):
        return plain.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=whole, cpu_offload=whole)
    return get_model_state_dict(model, options=options)


def load_model_state(
    model: nn.Module, plain: nn.Module, state: Mapping[str, Any], *, strict: bool = True
) -> None:
    """Take what `model_state` gave, with the same or another number of processes."""
    if is_engine(model):
        deepspeed.load_weights(model, state, strict=strict)
        return
    if not is_sharded(model):
        plain.load_state_dict(state, strict=strict)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    own = model_state(model, plain, whole=False)
    parts = {name: _part(value, own.get(name)) for name, value in state.items()}
    set_model_state_dict(model, parts, options=StateDictOptions(strict=strict))


def optimizer_state(model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, as of one process; a collective if the model is sharded.

    Of a sharded model only the main process gets it; the others get their parts of it.
    """
    state: dict[str, Any] = optimizer.state_dict()
    if not is_sharded(model):
        return state
    whole = {
        number: {key: _gathered(value) for key, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**state, "state": whole}


def load_optimizer_state(model: Any, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take what `optimizer_state` gave, with the same or another number of processes."""
    state = dict(state)
    if is_sharded(model):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state["state"] = {
            number: {key: _part(value, parameters[number]) for key, value in own.items()}
            for number, own in state["state"].items()
        }
    optimizer.load_state_dict(state)


def _gathered(value: Any) -> Any:
    """A value as of one process, in the memory of the main process alone."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else value


def _part(value: Any, parameter: Tensor | None) -> Any:
    """What of a value goes with the part of a parameter that this process holds."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    if getattr(value, "shape", None) != parameter.shape:
        return value
    own = value.to(parameter.device)
    return distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None)
