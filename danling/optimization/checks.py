"""Optimizers and schedulers as they are handed over: what cannot be trained with is said there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from danling.errors import ConfigError

__all__ = ["check_optimizers", "check_schedulers"]


def check_optimizers(optimizers: Mapping[str, Any]) -> None:
    """Refuse what is no optimizer, and what does not step on gradients alone.

    Args:
        optimizers: By name; a single one is named `""`.

    Raises:
        ConfigError: One of them cannot be used.

    Example:
        >>> from torch.optim import SGD
        >>> check_optimizers({"": SGD})
        Traceback (most recent call last):
        ...
        danling.errors.ConfigError: the optimizer is the class SGD: hand over an object, SGD(...)
    """
    for name, optimizer in optimizers.items():
        what = f"the optimizer {name!r}" if name else "the optimizer"
        _check_object(what, optimizer, "optimizer")
        if _is_stand_in(optimizer):
            continue
        kind = type(optimizer).__name__
        if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
            raise ConfigError(
                f"{what} is of type {kind}, which has no step() and no param_groups: hand over an "
                "object like torch.optim.SGD(model.parameters(), lr=...)"
            )
        if isinstance(optimizer, LBFGS) or _needs_arguments(type(optimizer).step, 1):
            raise ConfigError(
                f"{what}, {kind}, needs a closure that evaluates the model again, and the runner "
                "steps on gradients that are complete: use one whose step() needs no argument"
            )


def check_schedulers(schedulers: Mapping[str, Any], optimizers: Mapping[str, Any]) -> None:
    """Refuse what is no scheduler, and one that would move no optimizer of the runner.

    Args:
        schedulers: By the name of their optimizer; a single one is named `""`.
        optimizers: By name.

    Raises:
        ConfigError: One of them cannot be used.
    """
    for name, scheduler in schedulers.items():
        what = f"the scheduler {name!r}" if name else "the scheduler"
        _check_object(what, scheduler, "scheduler")
        if _is_stand_in(scheduler):
            continue
        kind = type(scheduler).__name__
        missing = [
            method
            for method in ("step", "state_dict", "load_state_dict")
            if not callable(getattr(scheduler, method, None))
        ]
        if missing:
            raise ConfigError(
                f"{what} is of type {kind}, which has no {' and no '.join(missing)}: a resumed "
                "run would not go on with the schedule; torch.optim.lr_scheduler.LambdaLR makes "
                "one of a function"
            )
        if not isinstance(scheduler, ReduceLROnPlateau) and _needs_arguments(scheduler.step, 0):
            raise ConfigError(
                f"{what}, {kind}, needs an argument for its step(), and the runner calls it "
                "without: use one that counts its steps itself, or step it in a callback's on_step"
            )
        if name in optimizers and not _moves(scheduler, optimizers[name]):
            own = f"{name!r}" if name else "of the runner"
            raise ConfigError(
                f"{what}, {kind}, was made for another optimizer than the one {own}, whose "
                f"learning rate it would never change: make it as {kind}(optimizer, ...)"
            )


def _check_object(what: str, part: Any, role: str) -> None:
    if isinstance(part, type):
        kind = part.__name__
        raise ConfigError(f"{what} is the class {kind}: hand over an object, {kind}(...)")
    if isinstance(part, (list, tuple, set)):
        raise ConfigError(
            f"{what} is a {type(part).__name__}: hand over several by name, as "
            f'{role}={{"generator": ..., "critic": ...}}'
        )


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
