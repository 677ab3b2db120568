"""Models of which each process holds a part (FSDP): their state, and forwards that need all.

What torch has for them takes half a second to import, and is imported where there is such a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from danling.errors import ConfigError
from danling.transfer import move

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["check_engine", "in_step", "is_engine", "is_partial", "is_sharded"]


_END = object()
_CPU = torch.device("cpu")


def check_engine(accelerator: Accelerator, model: Any) -> None:
    """Refuse engines with which a run would not be what it says.

    Raises:
        ConfigError: Accelerate or the user has chosen one.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
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


def is_partial(model: Any) -> bool:
    """Whether a process holds only a part of the weights, or of the state of their optimizer."""
    return is_sharded(model) or is_engine(model)


def gathers(model: Any) -> bool:
    """Whether a forward gathers weights from all processes."""
    stage = model.zero_optimization_stage() if is_engine(model) else 0
    return stage == 3 or is_sharded(model)


def in_step(runner: AccelerateRunner, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches of an evaluation; with a sharded model, equally many forwards on all processes.

    A forward gathers weights from all processes, which have unequally many batches: one that has
    no more runs the model on some batch again, and drops what comes out.
    """
    if not gathers(runner.model):
        yield from batches
        return
    world, spare = runner.world, _END
    batch = next(batches, _END)
    if world.maximum([batch is _END])[0]:  # a split smaller than the world
        firsts = world.gather(None if batch is _END else move(batch, _CPU))
        spare = next((first for first in firsts if first is not None), _END)
    while world.maximum([batch is not _END])[0]:
        if batch is _END:
            runner.predict_step(move(spare, runner.device))
            continue
        spare = batch
        yield batch
        batch = next(batches, _END)
