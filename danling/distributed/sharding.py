"""Models of which each process holds a part (FSDP): their state, and forwards that need all.

What torch has for them takes half a second to import, and is imported where there is such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from danling.distributed.world import World
from danling.errors import ConfigError
from danling.transfer import move

__all__ = ["check_engine", "in_lockstep", "is_engine", "is_sharded"]


_END = object()
_CPU = torch.device("cpu")


def check_engine(accelerator: Accelerator, models: Iterable[Any]) -> None:
    """Refuse engines with which a run would not be what it says, and models that they cannot wrap.

    Args:
        accelerator: The accelerator of the run.
        models: The modules that are called.

    Raises:
        ConfigError: Accelerate or the user has chosen one.
    """
    modules = [model for model in models if isinstance(model, nn.Module)]
    for model in modules if accelerator.num_processes > 1 else ():
        if type(model).forward is nn.Module.forward:
            kind = type(model).__name__
            raise ConfigError(
                f"the model is a {kind} without a forward, and its parts are called one by one: on "
                "several processes nothing would average their gradients. Hand them over by name, "
                'model={"encoder": ..., "decoder": ...}, and call runner.model["encoder"]; or '
                f"give your {kind} a forward that calls them"
            )
    parts = [part for model in modules for part in model.modules()]
    wrapped = any(type(part).__name__ == "FullyShardedDataParallel" for part in parts)
    if wrapped or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ConfigError(
            "the first version of FSDP is not supported: it hides parameters and norms. Use the "
            "second: accelerate launch --use_fsdp --fsdp_version 2, or fully_shard of torch"
        )


def is_sharded(model: Any) -> bool:
    """Whether a process holds only a part of the weights."""
    if not (isinstance(model, nn.Module) and dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if any(isinstance(part, FSDPModule) for part in model.modules()):
        return True  # also where a forward has left its parameters whole
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def is_engine(model: Any) -> bool:
    """Whether it is of DeepSpeed, which shards at least the state of the optimizer."""
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def in_lockstep(
    world: World,
    batches: Iterator[Any],
    forward: Callable[[Any], object],
    device: torch.device,
) -> Iterator[Any]:
    """Yield the batches of an evaluation, with equally many forwards on all processes.

    A forward of a sharded model gathers weights from all processes, which have unequally many
    batches: one that has no more runs the model on some batch again, and drops what comes out.

    Args:
        world: The processes.
        batches: The batches of this process.
        forward: The function that runs the model on a batch.
        device: The device of this process.
    """
    spare = _END
    batch = next(batches, _END)
    if world.maximum([batch is _END])[0]:  # a split smaller than the world
        firsts = world.gather(None if batch is _END else move(batch, _CPU))
        spare = next((first for first in firsts if first is not None), _END)
    while world.maximum([batch is not _END])[0]:
        if batch is _END:
            forward(move(spare, device))
            continue
        spare = batch
        yield batch
        batch = next(batches, _END)
