"""Models of which each process holds a part (FSDP): whole state, and forwards that need all.

What torch has for them takes half a second to import, and is imported where there is such a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from danling.errors import ConfigError
from danling.transfer import move

if TYPE_CHECKING:
    from danling.runner import AccelerateRunner

__all__ = [
    "check_engine",
    "in_step",
    "is_sharded",
    "load_model_state",
    "load_optimizer_state",
    "model_state",
    "optimizer_state",
]

_END = object()
_CPU = torch.device("cpu")


def check_engine(accelerator: Accelerator, model: Any) -> None:
    """Refuse engines with which a run would not be what it says.

    Raises:
        ConfigError: Accelerate or the user has chosen one.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ConfigError(
            "DeepSpeed is not supported: it takes steps of its own accord, and keeps its state to "
            "itself. FSDP shards as much: accelerate launch --use_fsdp --fsdp_version 2"
        )
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
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


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


def _part(value: Any, parameter: Tensor) -> Any:
    """What of a value goes with the part of a parameter that this process holds."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(parameter, DTensor) and getattr(value, "shape", None) == parameter.shape):
        return value
    own = value.to(parameter.device)
    return distribute_tensor(own, parameter.device_mesh, parameter.placements)


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
