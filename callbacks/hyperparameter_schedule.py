"""A number that changes while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["HyperparameterSchedule"]


class HyperparameterSchedule(Callback):
    """Set a scalar before each step or epoch: weight decay, momentum, the weight of a loss, ...

    The name is a key of the optimizers' parameter groups, as `"weight_decay"`, or the path of an
    attribute of the runner, as `"criterion.alpha"`. For learning rates there are the schedulers of
    torch. The value is a function of the step or epoch alone, so that there is no state; it is
    logged as `optim/<name>`. It costs a call of the function per step.

    Args:
        parameter: The name of the number that is set.
        schedule: The value at a step or epoch, counted from 0: a function, or a mapping of points
            to the values that hold from there on.
        interval: Whether steps or epochs are counted.

    Raises:
        CallbackError: There is no such parameter, or the schedule is neither.

    Example:
        >>> schedule = HyperparameterSchedule("momentum", {0: 0.85, 1000: 0.95})
        >>> schedule.value(0), schedule.value(999), schedule.value(1000)
        (0.85, 0.85, 0.95)
        >>> warmed = HyperparameterSchedule("criterion.alpha", lambda step: min(step / 500, 1.0))
    """

    name = "hyperparameter_schedule"
    priority = Priority.HIGH

    def __init__(
        self,
        parameter: str,
        schedule: Callable[[int], float] | Mapping[int, float],
        *,
        interval: Literal["step", "epoch"] = "step",
    ) -> None:
        if interval not in ("step", "epoch"):
            near = did_you_mean(str(interval), ["step", "epoch"])
            raise CallbackError(f"HyperparameterSchedule(interval={interval!r}): {near}")
        if isinstance(schedule, Mapping):
            if 0 not in schedule:
                raise CallbackError(
                    f"HyperparameterSchedule(schedule={dict(schedule)!r}): it has no value for 0"
                )
        elif not callable(schedule):
            raise CallbackError(
                f"HyperparameterSchedule(schedule={schedule!r}): a function, or a mapping of points"
            )
        self.parameter = parameter
        self.schedule = schedule
        self.interval = interval
        self.name = f"{type(self).name}/{parameter}"

    def value(self, at: int) -> float:
        """The value at a step or epoch."""
        if callable(self.schedule):
            return float(self.schedule(at))
        return float(self.schedule[max(point for point in self.schedule if point <= at)])

    def on_setup(self, runner: Runner) -> None:
        """See that there is such a parameter."""
        if _groups(runner, self.parameter):
            return
        owner, attribute = _owner(runner, self.parameter)
        if owner is None or not hasattr(owner, attribute):
            keys = {key for group in _all_groups(runner) for key in group} - {"params"}
            raise CallbackError(
                f"HyperparameterSchedule({self.parameter!r}): neither a key of the parameter "
                f"groups nor an attribute of the runner: {did_you_mean(self.parameter, keys)}"
            )

    def on_batch_start(self, runner: Runner, batch: Any) -> None:
        """Set the value that this step, or this epoch, has."""
        at = runner.global_step if self.interval == "step" else runner.epoch
        value = self.value(at)
        groups = _groups(runner, self.parameter)
        for group in groups:
            group[self.parameter] = value
        if groups:
            return
        owner, attribute = _owner(runner, self.parameter)
        current = getattr(owner, attribute)
        if isinstance(current, torch.Tensor):
            with torch.no_grad():
                current.fill_(value)
        else:
            setattr(owner, attribute, value)

    def on_step(self, runner: Runner) -> None:
        """Log the value that this step had."""
        if runner.is_log_step:
            at = runner.global_step - 1 if self.interval == "step" else runner.epoch
            runner.log(f"optim/{self.parameter}", self.value(at))


def _all_groups(runner: Runner) -> list[dict[str, Any]]:
    return [group for optimizer in runner.optimizers for group in optimizer.param_groups]


def _groups(runner: Runner, key: str) -> list[dict[str, Any]]:
    return [group for group in _all_groups(runner) if key in group]


def _owner(runner: Runner, path: str) -> tuple[Any, str]:
    """The object that has the attribute at the end of a path, and its name."""
    *parents, attribute = path.split(".")
    owner: Any = runner
    for parent in parents:
        owner = getattr(owner, parent, None)
    return owner, attribute
