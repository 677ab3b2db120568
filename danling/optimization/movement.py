"""The movement of schedules: with steps, epochs and evaluations, each at its own frequency."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from danling.errors import ConfigError, MetricError, did_you_mean
from danling.metrics.history import flatten, split_of
from danling.optimization.schedules import Factor, Schedule, make_scheduler
from danling.optimization.together import by_name, is_named, listed, numbered

__all__ = [
    "Moving",
    "argument_of",
    "closed_form",
    "make_schedulers",
    "moving",
    "read_schedules",
    "state_of",
]


WATCHING: Final = ("metrics", "metric", "score", "value")
"""The names of the first argument of `step` in schedulers that watch a value."""

COUNTING: Final = ("epoch", "t")
"""The names of that argument in schedulers that take the progress, as timm's."""


def read_schedules(scheduler: Any) -> dict[str, dict[str, Schedule]]:
    """The schedules by the name of their optimizer, each by a name of its own.

    Args:
        scheduler: A scheduler, `(scheduler, "epoch")`, a `Schedule`, a name, a mapping with
            `"name"`; a list of them; or any of these by the name of an optimizer.

    Raises:
        ConfigError: Something else was handed over.

    Example:
        >>> from danling.optimization.schedules import Factor, Schedule, make_scheduler
        >>> read_schedules({"critic": "cosine"})["critic"]["critic"].scheduler
        'cosine'
        >>> list(read_schedules(["linear", {"name": "cosine", "interval": "epoch"}])[""])
        ['0', '1']
    """
    return {
        key: {
            name: _read(entry)
            for name, entry in zip(numbered(key, part), listed(part), strict=True)
        }
        for key, part in by_name(scheduler).items()
    }


def _read(entry: Any) -> Schedule:
    if isinstance(entry, Schedule):
        return entry
    if isinstance(entry, tuple):
        if len(entry) != 2 or not isinstance(entry[1], str):
            raise ConfigError(
                'a scheduler in a tuple has its interval after it, as (scheduler, "epoch"); '
                "several schedulers are a list"
            )
        return Schedule(entry[0], entry[1])  # type: ignore[arg-type]  # it looks at the interval
    if isinstance(entry, Mapping) and not is_named(entry):
        raise ConfigError(f"a schedule has a 'name', and here are {', '.join(entry) or 'no'} keys")
    if isinstance(entry, Mapping):
        options = dict(entry)
        own = {key: options.pop(key) for key in _SETTINGS & options.keys()}
        return Schedule(options.pop("name"), **own, options=options)
    return Schedule(entry)


_SETTINGS = {"interval", "frequency", "monitor"}


def argument_of(scheduler: Any) -> str | None:
    """The first argument that `step` of a scheduler cannot go without; None where it needs none.

    Example:
        >>> class Timm:
        ...     def step(self, epoch, metric=None): ...
        >>> argument_of(Timm())
        'epoch'
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return "metrics"
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except ValueError:  # it is not written in Python
        return None
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    return needed[0] if needed else None


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Moving:
    """A scheduler that a run moves.

    Args:
        schedule: The scheduler, and when it moves.
        interval: The interval of the run, for a schedule that has none of its own.

    Attributes:
        scheduler: The scheduler.
        passed: The number of its intervals that have passed.
    """

    def __init__(self, schedule: Schedule, interval: str) -> None:
        self.scheduler = schedule.scheduler
        self.monitor = schedule.monitor
        self.passed = 0
        self._frequency = schedule.frequency
        self._argument = argument_of(self.scheduler)
        self._is_told_steps = hasattr(self.scheduler, "step_update")  # timm counts both
        self._takes_metric = "metric" in _optional(self.scheduler.step)
        self._latest: float | None = None
        self._own = schedule.interval
        self.interval = interval if self._own is None else self._own

    def settle(self, interval: str) -> None:
        """Take the interval of the run, where the schedule has none of its own."""
        if self._own is None:
            self.interval = interval

    def follow(self, length: Callable[[str], int | None]) -> None:
        """Let a schedule that has the length of the training follow it, from this point on.

        Args:
            length: The number of moves of the training at an interval; None where it is unknown.
        """
        factors = [f for f in getattr(self.scheduler, "lr_lambdas", ()) if isinstance(f, Factor)]
        if not any(factor.follows for factor in factors):
            return
        total = (length(self.interval) or 0) // self._frequency
        if not total or all(factor.total == total for factor in factors):
            return
        for factor in factors:
            factor.total = total
        groups = self.scheduler.optimizer.param_groups
        for group, rate in zip(groups, closed_form(self.scheduler) or (), strict=True):
            group["lr"] = rate

    @property
    def watches(self) -> bool:
        """Whether an evaluation moves it."""
        return self._argument in WATCHING or self.interval == "evaluation"

    @property
    def has_state(self) -> bool:
        """Whether more must be known than the scheduler knows itself."""
        return self._frequency > 1 or self._is_told_steps or self._argument in COUNTING

    def state_dict(self) -> dict[str, Any]:
        """The number of intervals that have passed, and the last value that was watched."""
        return {"passed": self.passed, "latest": self._latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.passed, self._latest = state["passed"], state["latest"]

    def after_step(self) -> Callable[[], object] | None:
        """The function to call after a step of its optimizer; None if a step does not move it."""
        if self._is_told_steps:
            return self._update
        if self.watches or self.interval != "step":
            return None
        if self._argument is None and self._frequency == 1:
            return self.scheduler.step  # type: ignore[no-any-return]  # of any class
        return self._pass

    def end_epoch(self, epoch: int) -> None:
        """Move it with an epoch.

        Args:
            epoch: The number of epochs completed.
        """
        if self._is_told_steps:
            self._tell(epoch)
        elif self.interval == "epoch" and not self.watches:
            self._pass()

    def end_evaluation(self, score: float | None, result: Mapping[str, Any]) -> None:
        """Move it with an evaluation, where it watches a value that is new.

        Args:
            score: The monitored value of the run; None where it is not new.
            result: The values by split.

        Raises:
            MetricError: The value that it watches is not in the result of its split.
        """
        value = score if self.monitor is None else self._value_in(self.monitor, result)
        if value is None:
            return
        self._latest = value
        if not self.watches:
            return
        self.passed += 1
        if self.passed % self._frequency == 0:
            self.scheduler.step(*([] if self._argument is None else [value]))

    def _value_in(self, monitor: str, result: Mapping[str, Any]) -> float | None:
        split = split_of(monitor, result)
        if split is None:
            return None
        known = flatten(result)
        if monitor not in known:
            raise MetricError(
                f"the schedule of {type(self.scheduler).__name__} watches {monitor!r}, which is "
                f"not in the result: {did_you_mean(monitor, known)}"
            )
        return float(known[monitor])

    def _pass(self) -> None:
        self.passed += 1
        if self.passed % self._frequency == 0:
            moves = self.passed // self._frequency
            self.scheduler.step(*([] if self._argument is None else [moves]))

    def _update(self) -> None:
        self.passed += 1
        if self.passed % self._frequency == 0:
            self.scheduler.step_update(self.passed, *self._metric())

    def _tell(self, epoch: int) -> None:
        self.scheduler.step(epoch, *self._metric())

    def _metric(self) -> list[float]:
        return [self._latest] if self._takes_metric and self._latest is not None else []


def moving(schedules: Mapping[str, Mapping[str, Schedule]], interval: str) -> dict[str, Moving]:
    """The schedules as a run moves them, each by its name.

    Args:
        schedules: The schedules that `read_schedules` gave.
        interval: The interval of a schedule that has none of its own.
    """
    return {
        name: Moving(schedule, interval)
        for part in schedules.values()
        for name, schedule in part.items()
    }


def make_schedulers(
    scheduler: Any,
    optimizers: Mapping[str, Any],
    length: Callable[[str], int | None],
    interval: str,
) -> Any:
    """Return the given schedulers, and make those that have only a name yet.

    Args:
        scheduler: A scheduler, or whatever else `read_schedules` reads.
        optimizers: The optimizers by name.
        length: The number of moves of a training at an interval; None where it is unknown.
        interval: The interval of a schedule that has none of its own.

    Raises:
        ConfigError: A schedule has no optimizer, or the length of the training is unknown.
    """
    given = read_schedules(scheduler)
    if unknown := given.keys() - optimizers.keys():
        raise ConfigError(
            f"the scheduler {unknown.pop()!r} has no optimizer of that name: "
            f"name schedulers as their optimizers, {list(optimizers)}"
        )
    if not any(_has_name(own) for part in given.values() for own in part.values()):
        return scheduler
    whole = {}
    for key, part in given.items():
        found = [
            _made(schedule, optimizer, length, interval)
            for schedule in part.values()
            for optimizer in (listed(optimizers[key]) if _has_name(schedule) else [None])
        ]
        whole[key] = found[0] if len(found) == 1 else found
    return whole[""] if list(whole) == [""] else whole


def _has_name(schedule: Schedule) -> bool:
    return isinstance(schedule.scheduler, str)


def _made(
    schedule: Schedule, optimizer: Any, length: Callable[[str], int | None], interval: str
) -> Any:
    """A schedule whose scheduler is an object; the object alone where that says all."""
    if not _has_name(schedule):
        return schedule
    name, options = schedule.scheduler, dict(schedule.options)
    own = schedule.interval or interval

    def total() -> int:
        known = length(own)
        if known is None:
            raise ConfigError(
                f"the schedule {name!r} needs the length of the training, which is unknown: set "
                f'max_steps, or give the schedule its own, as {{"name": {name!r}, "total": 1000}}'
            )
        return known // schedule.frequency

    arguments = {key: value for key, value in options.items() if key != "total"}
    scheduler = make_scheduler(optimizer, name, options.get("total", total), **arguments)
    if schedule.interval is None and schedule.frequency == 1 and schedule.monitor is None:
        return scheduler
    return Schedule(scheduler, schedule.interval, schedule.frequency, schedule.monitor)


def closed_form(scheduler: Any) -> list[Any] | None:
    """The learning rates that follow from the number of moves alone; None where they do not."""
    if isinstance(scheduler, LambdaLR):
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [rate * factor(scheduler.last_epoch) for rate, factor in pairs]
    if hasattr(scheduler, "_get_closed_form_lr"):
        return list(scheduler._get_closed_form_lr())
    return None


def state_of(scheduler: Any) -> dict[str, Any]:
    """The state of a scheduler; nothing for one that has none."""
    if not callable(getattr(scheduler, "state_dict", None)):
        return {}
    state: dict[str, Any] = scheduler.state_dict()
    return state


def _optional(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        return []
