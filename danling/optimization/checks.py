"""Optimizers and schedulers as they are handed over: what cannot be trained with is said there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import LBFGS

from danling.errors import ConfigError
from danling.optimization.movement import COUNTING, WATCHING, argument_of
from danling.optimization.schedules import Schedule, check_name
from danling.optimization.together import listed, numbered

__all__ = ["check_lists", "check_optimizers", "check_schedulers", "needs_closure"]


def check_optimizers(optimizers: Mapping[str, Any]) -> None:
    """Refuse what is no optimizer.

    Args:
        optimizers: The optimizers by name; a single one is `""`. Those of a list step together.

    Raises:
        ConfigError: One of them cannot be used.

    Example:
        >>> from torch.optim import SGD
        >>> check_optimizers({"": SGD})
        Traceback (most recent call last):
        ...
        danling.errors.ConfigError: the optimizer is the class SGD: hand over an object, SGD(...)
    """
    for name, part in optimizers.items():
        for own, optimizer in zip(numbered(name, part), listed(part), strict=True):
            _check_optimizer(_called("optimizer", own), optimizer)
        if isinstance(part, list):
            _check_list(name, part)


def _check_list(name: str, optimizers: list[Any]) -> None:
    """Refuse optimizers that cannot step together."""
    what = f"the list of optimizers {name!r}" if name else "the list of optimizers"
    if not optimizers:
        raise ConfigError(f"{what} is empty")
    if needing := [type(one).__name__ for one in optimizers if needs_closure(one)]:
        raise ConfigError(
            f"{needing[0]} in {what} needs a closure, and steps alone: hand over several by name, "
            'as optimizer={"first": ..., "second": ...}'
        )
    owners: dict[int, int] = {}
    pairs = [(number, p) for number, one in enumerate(optimizers) for p in _parameters(one)]
    for number, parameter in pairs:
        if owners.setdefault(id(parameter), number) != number:
            raise ConfigError(
                f"{what} has a parameter of shape {tuple(parameter.shape)} twice, in number "
                f"{owners[id(parameter)]} and number {number}: it would move twice in a step"
            )


def _parameters(optimizer: Any) -> list[Any]:
    groups = getattr(optimizer, "param_groups", ())
    return [parameter for group in groups for parameter in group["params"]]


def _check_optimizer(what: str, optimizer: Any) -> None:
    _check_object(what, optimizer)
    if isinstance(optimizer, (tuple, set, list)):
        raise ConfigError(
            f"{what} is a {type(optimizer).__name__}: hand over several by name, as "
            'optimizer={"generator": ..., "critic": ...}, or in a list if they step together'
        )
    if _is_stand_in(optimizer):
        return
    if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
        raise ConfigError(
            f"{what} is of type {type(optimizer).__name__}, which has no step() and no "
            "param_groups: hand over an object like torch.optim.SGD(model.parameters(), lr=...)"
        )
    if _needs_arguments(type(optimizer).step, 2):
        raise ConfigError(
            f"{what}, {type(optimizer).__name__}, needs more than a closure for its step()"
        )


def check_lists(optimizers: Mapping[str, Any]) -> None:
    """Refuse an optimizer with a list of parameters that are not those of its groups any more.

    Raises:
        ConfigError: One would move what nobody uses.
    """
    for name, optimizer in optimizers.items():
        kept = getattr(optimizer, "_params", None)  # of torch.optim.LBFGS, since it was made
        if not isinstance(kept, list):
            continue
        own = {id(parameter) for parameter in _parameters(optimizer)}
        if any(id(parameter) not in own for parameter in kept):
            raise ConfigError(
                f"{_called('optimizer', name)}, {type(optimizer).__name__}, keeps a list of its "
                "parameters, which were replaced by parts of them (FSDP): it would move none; "
                "train it on replicas (DDP)"
            )


def needs_closure(optimizer: Any) -> bool:
    """Whether an optimizer evaluates the model itself, through a closure.

    It is known of `torch.optim.LBFGS`, of one whose `step` cannot be called without, and of one
    that says so in an attribute `needs_closure`: True, or `"gradients"` where it also wants the
    gradients before it calls the closure.

    Example:
        >>> import torch
        >>> class Climber(torch.optim.SGD):
        ...     def step(self, closure): ...
        >>> needs_closure(Climber([torch.zeros(1)], lr=0.1))
        True
    """
    if isinstance(optimizer, list) or _is_stand_in(optimizer):
        return False
    if (told := getattr(optimizer, "needs_closure", None)) is not None:
        return bool(told)
    return isinstance(optimizer, LBFGS) or _needs_arguments(type(optimizer).step, 1)


def check_schedulers(
    schedulers: Mapping[str, Mapping[str, Schedule]], optimizers: Mapping[str, Any]
) -> None:
    """Refuse what is no scheduler, and one that would move no optimizer of the runner.

    Args:
        schedulers: The schedules by the name of their optimizer, each by a name of its own.
        optimizers: The optimizers by name.

    Raises:
        ConfigError: One of them cannot be used.
    """
    for key, schedules in schedulers.items():
        for name, schedule in schedules.items():
            what = _called("scheduler", name)
            if isinstance(schedule.scheduler, str):
                check_name(schedule.scheduler)
                continue
            _check_scheduler(what, schedule)
            if key in optimizers:
                _check_moves(what, schedule.scheduler, key, listed(optimizers[key]))


def _check_scheduler(what: str, schedule: Schedule) -> None:
    scheduler = schedule.scheduler
    _check_object(what, scheduler)
    if _is_stand_in(scheduler):
        return
    kind = type(scheduler).__name__
    if not callable(getattr(scheduler, "step", None)):
        raise ConfigError(
            f"{what} is of type {kind}, which has no step: torch.optim.lr_scheduler.LambdaLR makes "
            "a scheduler of a function"
        )
    has = [callable(getattr(scheduler, name, None)) for name in ("state_dict", "load_state_dict")]
    if any(has) and not all(has):
        raise ConfigError(f"{what}, {kind}, has one of state_dict and load_state_dict, not both")
    argument = argument_of(scheduler)
    if argument not in (None, *WATCHING, *COUNTING) or _needs_arguments(
        scheduler.step, int(argument is not None)
    ):
        raise ConfigError(
            f"{what}, {kind}, needs an argument {argument!r} for its step(), and the runner has "
            "none such: use one that counts its steps itself, or step it in a callback's on_step"
        )


def _check_moves(what: str, scheduler: Any, key: str, optimizers: list[Any]) -> None:
    if _is_stand_in(scheduler) or any(_moves(scheduler, optimizer) for optimizer in optimizers):
        return
    own, kind = f"{key!r}" if key else "of the runner", type(scheduler).__name__
    raise ConfigError(
        f"{what}, {kind}, was made for another optimizer than the one {own}, whose learning rate "
        f"it would never change: make it as {kind}(optimizer, ...)"
    )


def _called(role: str, name: str) -> str:
    return f"the {role} {name!r}" if name else f"the {role}"


def _check_object(what: str, part: Any) -> None:
    if isinstance(part, type):
        kind = part.__name__
        raise ConfigError(f"{what} is the class {kind}: hand over an object, {kind}(...)")


def _is_stand_in(part: Any) -> bool:
    """Whether it holds a place that Accelerate fills, as where DeepSpeed makes the optimizer."""
    return type(part).__module__.startswith("accelerate.") and not hasattr(part, "step")


def _needs_arguments(function: Callable[..., Any], given: int) -> bool:
    """Whether a function cannot be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(given))
    except TypeError:
        return True
    except ValueError:  # it is not written in Python
        return False
    return False


def _moves(scheduler: Any, optimizer: Any) -> bool:
    """Whether both know the same groups of parameters: a wrapped optimizer shares its own."""
    theirs = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    if theirs is None:
        return True
    own = {id(group) for group in optimizer.param_groups}
    return any(id(group) in own for group in theirs)
