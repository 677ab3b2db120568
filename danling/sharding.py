"""Models of which each process holds a part (FSDP): their state, and forwards that need all.

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

from danling import zero_files
from danling.errors import ConfigError
from danling.transfer import move

if TYPE_CHECKING:
    from danling.runner import AccelerateRunner

__all__ = [
    "check_engine",
    "in_step",
    "is_engine",
    "is_partial",
    "is_sharded",
    "load_model_state",
    "load_optimizer_state",
    "model_state",
    "optimizer_state",
    "saves_whole",
]

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
        return zero_files.weights_of(model) if whole else zero_files.places(plain)
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
        zero_files.load_weights(model, state, strict=strict)
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
