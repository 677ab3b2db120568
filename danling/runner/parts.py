"""The parts of a runner that are assigned after it was prepared: which, since when, and again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from accelerate.utils import DistributedType

from danling.errors import DanLingError, RunError
from danling.metrics.metric import check_mergeable, check_sections
from danling.optimization.hyperparameters import made_with
from danling.optimization.models import Models, as_models, parts_of
from danling.optimization.optimization import Optimization
from danling.runner.habits import check_overridden
from danling.runner.length import count_steps
from danling.runner.members import warn_of_lost, watch_members

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["OPTIMIZED", "Assigned", "OfData", "Part", "single_parts"]

OPTIMIZED: Final = frozenset({"model", "optimizer", "scheduler"})
"""The parts that are placed and wrapped together."""


class Part:
    """A part of a runner: an attribute that cannot be assigned between two batches of an epoch.

    It has no `__get__`, so that reading it is reading any attribute.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, runner: Any, value: Any) -> None:
        epoch = vars(runner).get("_epoch")
        if epoch is not None and epoch.is_under_way and value is not getattr(runner, self._name):
            raise RunError(
                f"{self._name} cannot be assigned between the batches of an epoch, which a resumed "
                "run could not do again: assign it in on_epoch_start or on_epoch_end, or between "
                "two epochs of your own loop"
            )
        vars(runner)[self._name] = value


class OfData:
    """An attribute of a runner that is one of its data."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, runner: Any, owner: type | None = None) -> Any:
        return self if runner is None else getattr(runner.data, self._name)

    def __set__(self, runner: Any, value: Any) -> None:
        setattr(runner.data, self._name, value)


def single_parts(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """The single parts in a part by name, where it is a mapping or a list of them.

    Example:
        >>> dict(single_parts("metrics", {"accuracy": max, "val": {"f1": min}}))
        {"metrics['accuracy']": <built-in function max>, "metrics['val']['f1']": <built-in ...>}
        >>> list(single_parts("scheduler", None))
        []
    """
    if isinstance(part, Mapping | list | tuple):
        items = part.items() if isinstance(part, Mapping) else enumerate(part)
        for key, item in items:
            yield from single_parts(f"{name}[{key!r}]", item)
    elif part is not None:
        yield name, part


class Assigned:
    """Knows which parts are others than before, so that they are used, told of and saved.

    Attributes:
        since: The epoch from which on a part was used that was not there at first, by its name.

    Example:
        >>> assigned, first = Assigned(), {"criterion": max}
        >>> assigned.take(first, epoch=0), assigned.take({"criterion": min}, epoch=2)
        ([], ['criterion'])
        >>> assigned.since
        {'criterion': 2}
    """

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self._known: dict[str, Callable[[], Any]] | None = None

    def take(self, parts: Mapping[str, Any], epoch: int) -> list[str]:
        """The names of the parts that are others than the last time; none the first time."""
        known, self._known = self._known, {name: _reference(parts[name]) for name in parts}
        if known is None:
            return []
        names = dict.fromkeys([*known, *parts])
        changed = [
            name
            for name in names
            if name not in known or name not in parts or known[name]() is not parts[name]
        ]
        self.since |= dict.fromkeys(changed, epoch)
        return changed

    def take_up(self, saved: Mapping[str, int], sure: Mapping[str, str | None]) -> list[str]:
        """Go on with what a checkpoint says; returns which parts may not be those of then.

        Args:
            saved: The `since` of the run that is resumed.
            sure: The fingerprints that parts have, by name: they are compared with the data.
        """
        missing = [name for name in saved if name not in self.since and not sure.get(name)]
        self.since = {**saved, **self.since}
        return [_line(name, saved[name]) for name in missing]

    @contextmanager
    def explained(self, saved: Mapping[str, int]) -> Iterator[None]:
        """Say on an error of a resume which parts the run had been given while it trained."""
        try:
            yield
        except DanLingError as error:
            for name in saved:
                if name not in self.since:
                    error.add_note(_line(name, saved[name]))
            raise


def _reference(part: Any) -> Callable[[], Any]:
    """A function that returns the part, and keeps it alive only where there is no other way."""
    try:
        return weakref.ref(part)
    except TypeError:
        return lambda: part


def _line(name: str, epoch: int) -> str:
    return (
        f"{name} was assigned while the run trained, for epoch {epoch}, and nobody has done it "
        "again: the callback that did can do so in load_state_dict(), or do it before the run opens"
    )


def parts_of_runner(runner: AccelerateRunner) -> dict[str, Any]:
    """The parts that may be assigned, by name; a wrapper around the model is the model."""
    runner.model = as_models(runner.model)
    names = ("criterion", "optimizer", "scheduler", "metrics")
    parts = {"model": runner.unwrapped_model} | {name: getattr(runner, name) for name in names}
    found = {
        key: single for name, part in parts.items() for key, single in single_parts(name, part)
    }
    for name, data in (("datasets", runner.datasets), ("dataloaders", runner.dataloaders)):
        found |= {f"{name}[{split!r}]": source for split, source in data.items()}
    return found


def take_assigned(runner: AccelerateRunner, epoch: int | None = None) -> None:
    """Use from now on what was assigned since the last time, and say so.

    Args:
        runner: The runner.
        epoch: The epoch that it is used from, where it is not the current one.

    Raises:
        RunError: An engine has the parts, and takes no others.
    """
    epoch = runner.epoch if epoch is None else epoch
    changed = runner._assigned.take(parts_of_runner(runner), epoch)
    if not changed:
        return
    runner.logger.info("from epoch %d on there are others: %s", epoch, ", ".join(changed))
    kinds = {name.partition("[")[0] for name in changed}
    if kinds & OPTIMIZED:
        prepare_again(runner, anew="model" in kinds)
    check_sections(runner.metrics, runner.splits)
    if runner.distributed:
        check_mergeable(runner.metrics)
    watch_members(runner)
    runner.optimization.replicas.begin()
    warn_of_lost(runner)
    if runner._training is not None:
        runner._training.total_steps = count_steps(runner)


def prepare_again(runner: AccelerateRunner, *, anew: bool) -> None:
    """Place and wrap the parts that there are now, as if the runner had been made with them."""
    if runner.optimization.model_state.is_partial or not runner.optimization.readable:
        raise RunError(
            f"model, optimizer and scheduler stay what they are under {runner.distributed_type}: "
            "make a new runner with the other ones"
        )
    if not anew and not runner.optimization.direct:
        runner.model = runner._unprepared_model
        for part in parts_of(as_models(runner.model)):  # Accelerate gives it precision again
            runner.accelerator.unwrap_model(part, keep_fp32_wrapper=False)
    runner.optimization = Optimization(runner.accelerator, {}, {})
    runner.accelerator.free_memory()  # with the wrapper goes what it does in a backward
    runner._prepared = False
    runner.prepare()
    made_with(runner.optimization)  # before a step changes it


def optimization_class(runner: AccelerateRunner) -> type[Optimization]:
    """The class that keeps the optimizers: an engine has one of its own."""
    if runner.accelerator.distributed_type != DistributedType.DEEPSPEED:
        return Optimization
    from danling.optimization.deepspeed import EngineOptimization, fill_config

    batch_size = runner.batch_size if "train" in runner.splits else None
    fill_config(runner.accelerator, runner.config, batch_size=batch_size)
    return EngineOptimization


def saves_one_file(runner: AccelerateRunner) -> bool:
    """Whether checkpoints of a sharded model are one file, by our setting or Accelerate's."""
    plugin = getattr(runner.accelerator.state, "fsdp_plugin", None)
    chosen = getattr(getattr(plugin, "state_dict_type", None), "name", "")
    return (runner.config.state_dict_type or chosen.lower()).startswith("full")


def check_own_steps(runner: AccelerateRunner, defaults: type) -> None:
    """Refuse several models with the steps of one, which would fail at the first batch.

    Args:
        runner: The runner.
        defaults: The class that has the steps of one model.

    Raises:
        ConfigError: A step is the one for a single model.
    """
    if not isinstance(runner.model, Models):
        return
    steps = {"train_step": runner.train_step}
    if runner._evaluate_every is not None and runner.evaluation_splits:
        steps["evaluate_step"] = runner.evaluate_step
    check_overridden(steps, defaults, list(runner.model))
