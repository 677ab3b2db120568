"""Models of which each process holds a part (FSDP): whole state, and forwards that need all.

What torch has for them takes half a second to import, and is imported where there is such a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from danling.transfer import move

if TYPE_CHECKING:
    from danling.runner import AccelerateRunner

__all__ = [
    "in_step",
    "is_sharded",
    "load_model_state",
    "load_optimizer_state",
    "model_state",
    "optimizer_state",
]

_END = object()
_CPU = torch.device("cpu")


def is_sharded(model: Any) -> bool:
    """Whether a process holds only a part of the weights."""
    if not (isinstance(model, nn.Module) and dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(part, FullyShardedDataParallel) for part in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def model_state(model: nn.Module, plain: nn.Module) -> dict[str, Any]:
    """The whole weights under the names of the plain model; a collective if they are sharded.

    Of a sharded model only the main process gets them; the others get nothing.
    """
    if not is_sharded(model):
        return plain.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def load_model_state(
    model: nn.Module, plain: nn.Module, state: Mapping[str, Any], *, strict: bool = True
) -> None:
    """Take what `model_state` gave, with the same or another number of processes."""
    if not is_sharded(model):
        plain.load_state_dict(state, strict=strict)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=strict)
    set_model_state_dict(model, dict(state), options=options)


def optimizer_state(model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer; a collective if the model is sharded."""
    if not is_sharded(model):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(model: Any, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take what `optimizer_state` gave, with the same or another number of processes."""
    if not is_sharded(model):
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, dict(state), options=options)


def in_step(runner: AccelerateRunner, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches of an evaluation; with a sharded model, equally many forwards on all processes.

    A forward gathers weights from all processes, which have unequally many batches: one that has
    no more runs the model on some batch again, and drops what comes out.
    """
    if not is_sharded(runner.model):
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
