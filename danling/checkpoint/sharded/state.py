"""The state of a model in checkpoints: whole, in parts of FSDP2, or in the files of DeepSpeed.

One object answers for a model, chosen once when it is prepared by `model_state_of`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from danling.checkpoint.sharded import deepspeed, shards
from danling.distributed.sharding import is_engine, is_sharded

if TYPE_CHECKING:
    from danling.checkpoint.sharded.shards import ShardedTensors
    from danling.checkpoint.store import CheckpointStore
    from danling.distributed.world import World

__all__ = [
    "DeepSpeedState",
    "ModelState",
    "ShardedState",
    "differences",
    "model_state_of",
    "plain_name",
    "plain_names",
    "renamed",
    "write_shards",
]


_COMPILED = "_orig_mod."


def plain_name(name: str) -> str:
    """The name of a weight or a module without what `torch.compile` puts into it.

    Example:
        >>> plain_name("backbone._orig_mod.0.weight")
        'backbone.0.weight'
    """
    return name.replace(_COMPILED, "").removesuffix("._orig_mod")


def plain_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict of a module under its plain names: where no part is compiled, the very same."""
    if not any(_COMPILED in name for name in state):
        return state
    plain = type(state)((plain_name(name), value) for name, value in state.items())
    if (metadata := getattr(state, "_metadata", None)) is not None:
        found = {plain_name(f"{name}.").rstrip("."): version for name, version in metadata.items()}
        plain._metadata = type(metadata)(found)  # type: ignore[attr-defined]  # as torch keeps it
    return plain


def renamed(module: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict under the names of a module, whichever of the two has compiled parts."""
    own = {plain_name(name): name for name in module.state_dict()}
    if all(own.get(name, name) == name for name in state):
        return state
    found = {own.get(plain_name(name), name): value for name, value in state.items()}
    result = OrderedDict(found)
    if (metadata := getattr(state, "_metadata", None)) is not None:
        parts = {plain_name(name): name for name, _ in module.named_modules()}
        versions = {parts.get(plain_name(n), n): version for n, version in metadata.items()}
        result._metadata = versions  # type: ignore[attr-defined]  # as torch keeps it
    return result


class ModelState:
    """The state of a model that each process holds whole, and of its optimizers.

    Args:
        model: The model as it is called; None where there is none.
        plain: The model without what is wrapped around it, under whose names weights are saved.
        whole: Whether a checkpoint is one file.

    Attributes:
        is_partial: Whether a process holds only a part of the weights or of the optimizers' state.
        gathers: Whether a forward gathers weights from all processes.
        whole: Whether a checkpoint is one file.
    """

    is_partial = False
    gathers = False

    def __init__(self, model: Any, plain: Any, *, whole: bool = True) -> None:
        self.model = model
        self.plain = plain
        self.whole = whole

    def state(self, *, whole: bool = True) -> dict[str, Any] | None:
        """The weights under the names of the plain model; a collective where it is sharded.

        Of a sharded model the main process gets the whole, and the others nothing.

        Args:
            whole: Whether to gather what is sharded; else each process gets the part that it has.
        """
        return None if self.plain is None else plain_names(self.plain.state_dict())

    def load(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Take what `state` gave, with the same or another number of processes."""
        self.plain.load_state_dict(renamed(self.plain, state), strict=strict)

    def optimizer_state(self, optimizer: Optimizer, *, whole: bool = True) -> dict[str, Any]:
        """The state of an optimizer; the whole of it is as of one process."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Take what `optimizer_state` gave, with the same or another number of processes."""
        optimizer.load_state_dict(dict(state))
        put_back(optimizer, state)

    def split(self, contents: Mapping[str, Any]) -> tuple[Mapping[str, Any], ShardedTensors | None]:
        """The head of a checkpoint, and what each process is to write its part of."""
        return contents, None

    def read(
        self,
        head: Mapping[str, Any],
        path: Path,
        world: World,
        optimizers: Mapping[str, Optimizer],
        *,
        fits: bool = True,
    ) -> Mapping[str, Any]:
        """A checkpoint with what is in its shards; a collective.

        Args:
            head: The file's content.
            path: The file.
            world: The processes that read together.
            optimizers: The optimizers whose state is wanted, by name.
            fits: Whether the optimizers are those of the checkpoint.

        Raises:
            CheckpointError: The shards cannot be read.
        """
        if "shards" not in head:
            return head
        directory = shards.directory_of(path, head["shards"])
        if "engine" in head:
            return deepspeed.read(self._engine(fits), head, directory, world)
        from danling.checkpoint.sharded import dcp

        parts = dcp.SPLIT if optimizers else ("model",)
        like, group = self._like(optimizers), world if self.is_partial else None
        return world.together(lambda: dcp.read(head, directory, like, group, parts))

    def describe(self) -> dict[str, Any]:
        """The weights by name, as they are when whole: to compare names, shapes and types."""
        return {} if self.plain is None else plain_names(deepspeed.described(self.plain))

    def partitioning(self) -> dict[str, int] | None:
        """The values that must be the same for the shards to be read; None where none must."""
        return None

    def _engine(self, fits: bool) -> Any:
        return None

    def _like(
        self, optimizers: Mapping[str, Optimizer]
    ) -> Callable[[tuple[Any, ...]], Tensor | None]:
        return lambda place: None


class ShardedState(ModelState):
    """The state of a model of FSDP2, of which each process holds a part."""

    is_partial = True
    gathers = True

    def state(self, *, whole: bool = True) -> dict[str, Any] | None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=whole, cpu_offload=whole)
        return get_model_state_dict(self.model, options=options)

    def load(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        own = self.state(whole=False) or {}
        parts = {name: _part(value, own.get(name)) for name, value in state.items()}
        set_model_state_dict(self.model, parts, options=StateDictOptions(strict=strict))

    def optimizer_state(self, optimizer: Optimizer, *, whole: bool = True) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        if not whole:
            return state
        gathered = {
            number: {key: _gathered(value) for key, value in own.items()}
            for number, own in state["state"].items()
        }
        return {**state, "state": gathered}

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            number: {key: _part(value, parameters[number]) for key, value in own.items()}
            for number, own in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})
        put_back(optimizer, {**state, "state": parts})

    def split(self, contents: Mapping[str, Any]) -> tuple[Mapping[str, Any], ShardedTensors | None]:
        if self.whole:
            return contents, None
        from danling.checkpoint.sharded import dcp

        head, tensors = dcp.split(contents)
        return head, tensors or None

    def _like(
        self, optimizers: Mapping[str, Optimizer]
    ) -> Callable[[tuple[Any, ...]], Tensor | None]:
        """The parameter that a tensor in a checkpoint is for."""
        from torch.distributed.tensor import DTensor

        weights = self.state(whole=False) or {}
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


class DeepSpeedState(ModelState):
    """The state of an engine of DeepSpeed, which writes files of its own."""

    is_partial = True

    def __init__(self, model: Any, plain: Any) -> None:
        super().__init__(model, plain, whole=False)
        self.gathers = model.zero_optimization_stage() == 3

    def state(self, *, whole: bool = True) -> dict[str, Any] | None:
        return deepspeed.weights_of(self.model) if whole else deepspeed.places(self.plain)

    def load(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        deepspeed.load_weights(self.model, state, strict=strict)

    def split(self, contents: Mapping[str, Any]) -> tuple[Mapping[str, Any], ShardedTensors | None]:
        return deepspeed.split(self.model, contents)

    def partitioning(self) -> dict[str, int] | None:
        return deepspeed.partitioning(self.model)

    def _engine(self, fits: bool) -> Any:
        return self.model if fits else None


def model_state_of(model: Any, plain: Any, *, whole: bool = False) -> ModelState:
    """The object that answers for a model in checkpoints.

    Args:
        model: The model as it is called.
        plain: The model without what is wrapped around it.
        whole: Whether a checkpoint is one file also where the model is sharded.
    """
    if is_engine(model):
        return DeepSpeedState(model, plain)
    if is_sharded(model):
        return ShardedState(model, plain, whole=whole)
    return ModelState(model, plain)


def write_shards(
    world: World, store: CheckpointStore, global_step: int, parts: ShardedTensors
) -> shards.Manifest:
    """Write the parts that `split` gave; returns what the commit of the head wants to know.

    A collective.

    Raises:
        CheckpointError: It cannot be written, by any of the processes; what it left is removed, by
            the next start if not now.
    """
    directory = world.on_main(lambda: store.new_shards(global_step))
    try:
        names = parts.write(directory, world)
        sealed: Sequence[Any] = world.gather(world.together(lambda: shards.seal(directory, names)))
        return world.on_main(lambda: shards.finish(directory, sealed))
    except BaseException:
        if world.rank == 0:
            shards.remove(directory)
        raise


def put_back(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Let the state of parameters be what was saved, where torch has made something else of it.

    `load_state_dict` of torch takes any iterable apart, so that a string becomes the name of a
    generator object, and casts tensors to the type of the parameter.
    """
    for own, key, value in _entries(optimizer, state):
        loaded = own[key]
        if isinstance(value, Tensor):
            if isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                own[key] = value.detach().to(loaded.device, copy=True)
        elif not _has_tensors(value) and repr(value) != repr(loaded):
            own[key] = deepcopy(value)


def differences(optimizer: Optimizer, state: Mapping[str, Any]) -> list[str]:
    """The values in the state of parameters that are other ones than those of a checkpoint."""
    return sorted(
        {
            f"the state {key!r} of an optimizer was not restored"
            for own, key, value in _entries(optimizer, state, missing=True)
            if key not in own or (not _has_tensors(value) and repr(value) != repr(own[key]))
        }
    )


def _entries(
    optimizer: Optimizer, state: Mapping[str, Any], *, missing: bool = False
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The values of a saved state, each with the state of now that has it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, saved in state["state"].items():
        if not isinstance(saved, dict) or not isinstance(number, int):
            continue
        own = optimizer.state.get(parameters[number]) if number < len(parameters) else None
        if isinstance(own, dict):
            yield from ((own, key, saved[key]) for key in saved if key in own or missing)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_tensors, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_has_tensors, value))
    return not isinstance(value, str | bytes | int | float | complex | type(None))


def _gathered(value: Any) -> Any:
    """A value as of one process, in the memory of the main process alone."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else value


def _part(value: Any, parameter: Tensor | None) -> Any:
    """The share of a value that goes with this process's part of a parameter."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    if getattr(value, "shape", None) != parameter.shape:
        return value
    own = value.to(parameter.device)
    return distribute_tensor(own, parameter.device_mesh, parameter.placements, src_data_rank=None)
