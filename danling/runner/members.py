"""The members of a run: modules and objects with a state besides model, optimizers, schedulers.

Three things are known of them: their state dicts, under their names; what no state dict holds and
training has changed (modes, frozen parameters, counters, generators); and what is lost.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from danling.checkpoint.sharded.state import plain_name
from danling.errors import ConfigError
from danling.metrics.metric import all_metrics

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["Watch", "find_members", "lost", "state_problems", "stateless", "with_names"]


_ATOMS = (bool, int, float, complex, str, bytes, type(None))
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_MANY = 1000  # items of a list that is looked into


def find_members(attributes: Mapping[str, Any], known: Iterable[Any]) -> dict[str, Any]:
    """The modules and objects with `state_dict` and `load_state_dict` among attributes, by name.

    Those in a list or a mapping have a name with a point: `teachers.0`.

    Args:
        attributes: The values by name.
        known: The objects that are saved in another place, or are not saved.
    """
    met = {id(part) for part in known}
    found: dict[str, Any] = {}
    for name, value in _listed(attributes):
        if id(value) not in met and _has_state(value):
            met.add(id(value))
            found[name] = value
    return found


def with_names(objects: Mapping[str, Any], taken: Iterable[str]) -> dict[str, Any]:
    """Objects that somebody registers for checkpoints.

    Raises:
        ConfigError: An object has no state, or its name is taken.
    """
    names = set(taken)
    for name, value in objects.items():
        if not _has_state(value):
            raise ConfigError(
                f"register_for_checkpointing({name}=...): {type(value).__name__} has no "
                "state_dict() and load_state_dict()"
            )
        if name in names:
            raise ConfigError(
                f"register_for_checkpointing({name}=...): {name!r} is registered already"
            )
    return dict(objects)


def state_problems(
    members: Mapping[str, Any], saved: Mapping[str, Any] | None
) -> tuple[list[str], list[str], list[str]]:
    """The members that cannot be loaded, those that can be left out, and those missing.

    Args:
        members: The modules and objects of now.
        saved: The states in a checkpoint; None in one of before they were saved.
    """
    wrong: list[str] = []
    other: list[str] = []
    for name, member in members.items():
        if not isinstance(member, nn.Module) or name not in (saved or {}):
            continue
        own = {plain_name(key): value for key, value in member.state_dict().items()}
        then = {plain_name(key): value for key, value in (saved or {})[name].items()}
        other += [f"missing {name}.{key}" for key in own if key not in then]
        other += [f"unexpected {name}.{key}" for key in then if key not in own]
        for key in own.keys() & then.keys():
            shapes = [getattr(value, "shape", None) for value in (then[key], own[key])]
            if not is_lazy(own[key]) and shapes[0] != shapes[1]:
                wrong.append(f"{name}.{key} has the shape {shapes[0]}, now {shapes[1]}")
    if saved is None:
        gone = [name for name, member in members.items() if member.state_dict()]
        return wrong, other, [f"the checkpoint has no state of {name}" for name in gone]
    missing = [
        f"the checkpoint has no state of {name}"
        for name, member in members.items()
        if name not in saved and member.state_dict()
    ]
    missing += [
        f"the state of {name} is not used: the run has none of that name"
        for name, state in saved.items()
        if name not in members and state
    ]
    return wrong, other, missing


def lost(
    optimizers: Mapping[str, Optimizer], modules: Mapping[str, nn.Module], states: Iterable[Any]
) -> list[str]:
    """A line for each thing that optimizers have and no checkpoint holds.

    Args:
        optimizers: The optimizers by name.
        modules: The modules whose state is saved, by name.
        states: The states of other objects.
    """
    kept = {
        id(parameter)
        for module in modules.values()
        for name, parameter in _saved_parameters(module)
    }
    storages = {tensor.data_ptr() for tensor in _tensors(list(states))}
    lines: list[str] = []
    for name, optimizer in optimizers.items():
        label = f"optimizer {name!r}" if name else "the optimizer"
        for index, group in enumerate(optimizer.param_groups):
            count = sum(
                id(parameter) not in kept
                and (is_lazy(parameter) or parameter.data_ptr() not in storages)
                for parameter in group["params"]
            )
            if count:
                lines.append(
                    f"{count} parameters in group {index} of {label} are in nothing that is saved: "
                    "make their module an attribute of the runner"
                )
        lines += [f"{label} {line}" for line in _inner_optimizers(optimizer)]
    return lines


def stateless(schedulers: Mapping[str, Any]) -> list[str]:
    """A line for each thing that schedulers have and no checkpoint holds."""
    lines = []
    for name, part in schedulers.items():
        label = f"scheduler {name!r}" if name else "the scheduler"
        if not callable(getattr(part, "state_dict", None)):
            lines.append(
                f"{label} ({type(part).__name__}) has no state_dict(): a resumed run begins its "
                "schedule anew"
            )
            continue
        saved = list(_mappings(part.state_dict()))
        lines += [
            f"{label} keeps {key} ({type(inner).__name__}), whose state is not in its state_dict()"
            for key, inner in _listed(vars(part))
            if isinstance(inner, LRScheduler) and inner.state_dict() not in saved
        ]
    return lines


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """The mappings in a state, at any depth."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _mappings(item)


class Watch:
    """The values of modules that no state dict holds, watched for changes since first seen.

    Modes of modules, `requires_grad` of parameters, buffers that are not persistent, generators,
    and attributes that are numbers, strings, tensors or short lists of such. What a script sets
    before the training is its own, and not restored; what training has changed is.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """Remember how everything is that was not seen before."""
        for path, (_, _, value) in _watched(modules).items():
            self._first.setdefault(path, _mark(value))

    def changed(self, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
        """The values that have changed, by path, in values that a checkpoint holds."""
        return {
            path: _saved(value)
            for path, (_, _, value) in _watched(modules).items()
            if _drawn(value) or path not in self._first or not _is_as(value, self._first[path])
        }

    def restore(self, modules: Mapping[str, nn.Module], values: Mapping[str, Any]) -> list[str]:
        """Put back what `changed` gave; returns why it is not exactly as it was."""
        own = _watched(modules)
        holders = {
            f"{name}.{part}".rstrip("."): module
            for name, whole in modules.items()
            for part, module in _modules(whole)
        }
        reasons = []
        for path, value in values.items():
            holder, _, attribute = path.rpartition(".")
            if path in own:
                _put(*own[path], value)
            elif holder in holders:
                setattr(holders[holder], attribute, value)
            else:
                reasons.append(f"{path} is not there any more")
        return reasons


# What has a state


def _has_state(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, type):
        return False
    return all(
        callable(getattr(type(value), name, None)) for name in ("state_dict", "load_state_dict")
    )


def _listed(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        yield name, value
        if _has_state(value) or not isinstance(value, dict | list | tuple) or len(value) > _MANY:
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((f"{name}.{key}", item) for key, item in items)


def _saved_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    keys = {plain_name(key) for key in module.state_dict()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if plain_name(name) in keys:
            yield name, parameter


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _inner_optimizers(optimizer: Optimizer) -> list[str]:
    """The optimizers that an optimizer keeps, and whose state is not in its own."""
    saved = None
    lines = []
    for name, inner in _listed(vars(optimizer)):
        if not isinstance(inner, Optimizer) or inner is optimizer or inner.state is optimizer.state:
            continue
        if saved is None:
            saved = {tensor.data_ptr() for tensor in _tensors(optimizer.state_dict())}
        own = list(_tensors(inner.state_dict()["state"]))
        plain = type(optimizer).state_dict is Optimizer.state_dict and not own
        if plain or any(tensor.data_ptr() not in saved for tensor in own):
            lines.append(
                f"keeps {name} ({type(inner).__name__}), whose state is not in its state_dict()"
            )
    return lines


# What no state dict holds


Place = tuple[Any, str, Any]
"""The object that has a value, under which name, and the value."""


def _modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((plain_name(name), part) for name, part in module.named_modules())


def _watched(modules: Mapping[str, nn.Module]) -> dict[str, Place]:
    return {
        f"{name}.{part_name}".rstrip(".") + f".{key}": place
        for name, whole in modules.items()
        for part_name, part in _modules(whole)
        for key, place in _places(part)
    }


def _places(part: nn.Module) -> Iterator[tuple[str, Place]]:
    """The watched values of one module, without the modules in it."""
    values = {key: value for key, value in vars(part).items() if key not in _INTERNAL}
    values |= {key: part._buffers[key] for key in part._non_persistent_buffers_set}
    for key, value in values.items():
        if _is_plain(value) or _is_kept(value) or _drawn(value):
            yield key, (part, key, value)
    for key, parameter in part._parameters.items():
        if parameter is not None:
            place = (parameter, "requires_grad", parameter.requires_grad)
            yield f"{key}.requires_grad", place


def _is_plain(value: Any) -> bool:
    if type(value) in _ATOMS:
        return True
    if type(value) is dict:
        return len(value) <= _MANY and all(
            type(item) in _ATOMS for pair in value.items() for item in pair
        )
    if type(value) in (list, tuple, set):
        return len(value) <= _MANY and all(type(item) in _ATOMS for item in value)
    return False


def _is_kept(value: Any) -> bool:
    """Whether it is a tensor that no forward has computed from parameters."""
    return isinstance(value, Tensor) and value.grad_fn is None and not is_lazy(value)


def _drawn(value: Any) -> bool:
    """Whether it is a generator of random numbers."""
    return isinstance(value, torch.Generator | random.Random) or hasattr(value, "bit_generator")


def _mark(value: Any) -> Any:
    """The mark by which a value is recognised later."""
    if isinstance(value, Tensor):
        return weakref.ref(value), _version(value)
    return None if _drawn(value) else repr(value)


def _is_as(value: Any, mark: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(mark, tuple) and mark[0]() is value and mark[1] == _version(value)
    return bool(repr(value) == mark)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _saved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        version, words, gauss = value.getstate()
        return [version, list(words), gauss]
    if hasattr(value, "bit_generator"):
        return value.bit_generator.state
    return value.copy() if isinstance(value, dict | list | set) else value


def _put(holder: Any, name: str, value: Any, saved: Any) -> None:
    """Let an attribute be what it was; a tensor and a generator stay the objects that they are."""
    if isinstance(value, torch.Generator):
        value.set_state(saved)
    elif isinstance(value, random.Random):
        value.setstate((saved[0], tuple(saved[1]), saved[2]))
    elif hasattr(value, "bit_generator"):
        value.bit_generator.state = saved
    elif isinstance(value, Tensor) and isinstance(saved, Tensor):
        if value.shape == saved.shape and not value.requires_grad:
            with torch.no_grad():
                value.copy_(saved)
        else:
            setattr(holder, name, saved.to(value.device))
    else:
        setattr(holder, name, saved)


def warn_of_lost(runner: AccelerateRunner) -> None:
    for line in runner._contents.lost(runner.optimization):
        runner.logger.warning("a resume will not be exact: %s", line)


def watch_members(runner: AccelerateRunner) -> None:
    """Look which modules and objects have a state, place them, and watch what changes."""
    own = {name: value for name, value in vars(runner).items() if name not in runner._own_names}
    given = getattr(runner.accelerator, "_custom_objects", [])
    candidates = {"criterion": runner.criterion, **own, **runner._registered}
    candidates |= {f"registered.{index}": value for index, value in enumerate(given)}
    left_out = [candidates.pop(name) for name in runner.not_saved if name in candidates]
    known = [*left_out, runner.model, runner.optimizer, runner.scheduler, *runner.callbacks]
    known += runner.optimization.optimizers.values()
    known += runner.optimization.schedulers.values()
    known += [metric for _, metric in all_metrics(runner.metrics)]
    known += [*runner.datasets.values(), *runner.dataloaders.values()]
    known += [] if runner.unwrapped_model is None else runner.unwrapped_model.modules()
    before = runner._contents.members
    runner._contents.members = members = find_members(candidates, known)
    modules = [part for part in members.values() if isinstance(part, nn.Module)]
    for name, module in members.items():
        if isinstance(module, nn.Module) and before.get(name) is not module:
            module.to(runner.device)
    runner.optimization.replicas.apart = modules
    runner._contents.begin(runner.optimization)


def tell_what_is_saved(runner: AccelerateRunner) -> None:
    """Log the names of the parts that checkpoints hold."""
    parts = {"model": runner.model, "optimizer": runner.optimizer, "scheduler": runner.scheduler}
    saved = [name for name, part in parts.items() if part is not None]
    saved += [name for name, part in runner._contents.members.items() if part.state_dict()]
    if runner.has_dir and saved:
        runner.logger.info("checkpoints hold %s", ", ".join(saved))
