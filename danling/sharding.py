"""Models of which each process holds a part (FSDP): whole state, and forwards that need all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
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

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_END = object()
_CPU = torch.device("cpu")


def is_sharded(model: Any) -> bool:
    """Whether a process holds only a part of the weights."""
    if not isinstance(model, nn.Module):
        return False
    return any(isinstance(part, FullyShardedDataParallel) for part in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def model_state(model: nn.Module, plain: nn.Module) -> dict[str, Any]:
    """The whole weights under the names of the plain model; a collective if they are sharded.

    Of a sharded model only the main process gets them; the others get nothing.
    """
    return get_model_state_dict(model, options=_WHOLE) if is_sharded(model) else plain.state_dict()


def load_model_state(
    model: nn.Module, plain: nn.Module, state: Mapping[str, Any], *, strict: bool = True
) -> None:
    """Take what `model_state` gave, with the same or another number of processes."""
    if is_sharded(model):
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(model, dict(state), options=options)
    else:
        plain.load_state_dict(state, strict=strict)


def optimizer_state(model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer; a collective if the model is sharded."""
    if is_sharded(model):
        return get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    return optimizer.state_dict()


def load_optimizer_state(model: Any, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take what `optimizer_state` gave, with the same or another number of processes."""
    if is_sharded(model):
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, dict(state), options=options)
    else:
        optimizer.load_state_dict(dict(state))


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
