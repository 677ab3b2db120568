"""Metrics: functions of (output, target), and objects with `update`, `compute` and `reset`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor, nn

from danling.distributed.world import World
from danling.errors import MetricError, did_you_mean
from danling.transfer import move

__all__ = [
    "RESERVED",
    "all_metrics",
    "check_mergeable",
    "check_sections",
    "compute",
    "is_stateful",
    "is_used",
    "load_metric_state",
    "measure",
    "metric_state",
    "metrics_for",
    "own_copies",
    "reset",
]


RESERVED: Final = frozenset({"loss", "n", "output"})
"""The keys of a step's output besides metrics."""


class Unused:
    """The `update` of a metric that nobody has updated yet: the first call takes it away.

    It is an attribute of the metric itself, so that later updates cost nothing more.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        use(self.metric)
        return self.metric.update(*args, **keywords)


def watch(metric: Any) -> None:
    """Let a metric that is empty tell whether it was updated; torchmetrics' count by themselves."""
    if is_stateful(metric) and not accumulators(metric) and hasattr(metric, "__dict__"):
        vars(metric).setdefault("update", Unused(metric))


def use(metric: Any) -> None:
    """Take note that a metric was updated."""
    if isinstance(getattr(metric, "__dict__", {}).get("update"), Unused):
        del vars(metric)["update"]


def is_used(metric: Any) -> bool:
    """Whether a metric was updated since it was made or reset, as far as it can tell.

    Example:
        >>> class Count:
        ...     def reset(self): self.samples = 0
        ...     def update(self, output, target): self.samples += len(output)
        ...     def compute(self): return self.samples
        >>> metrics = own_copies({"count": Count()}, "cpu")
        >>> reset(metrics)
        >>> is_used(metrics["count"])
        False
        >>> metrics["count"].update(torch.zeros(3), torch.zeros(3))
        >>> is_used(metrics["count"]), compute(metrics)
        (True, {'count': 3.0})
    """
    if parts := accumulators(metric):
        return any(getattr(part, "_update_count", 0) for part in parts.values())
    return not isinstance(getattr(metric, "__dict__", {}).get("update"), Unused)


def is_section(value: Any) -> bool:
    """Whether it is a mapping of metrics, those of one split alone."""
    return isinstance(value, Mapping) and not is_stateful(value)


def metrics_for(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The metrics of a split: the common ones, and those under its name.

    Example:
        >>> metrics = {"length": len, "val": {"largest": max}}
        >>> list(metrics_for(metrics, "train")), list(metrics_for(metrics, "val"))
        (['length'], ['length', 'largest'])
    """
    common = {name: metric for name, metric in metrics.items() if not is_section(metric)}
    own: Any = metrics.get(split)
    return common | dict(own) if is_section(own) else common


def all_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each metric with its name; one of a single split has that before it."""
    for name, metric in metrics.items():
        if is_section(metric):
            yield from ((f"{name}/{own}", part) for own, part in metric.items())
        else:
            yield name, metric


def check_sections(metrics: Mapping[str, Any], splits: Collection[str]) -> None:
    """Refuse metrics of a split that there is no data for.

    Raises:
        MetricError: There is a mapping of metrics under another name than that of a split.
    """
    for name, value in metrics.items():
        if is_section(value) and splits and name not in splits:
            near = did_you_mean(name, splits)
            raise MetricError(f"metrics[{name!r}] is a mapping, and of no split: {near}")


def is_stateful(metric: Any) -> bool:
    """Whether a metric is an object that accumulates, and not a function."""
    return all(hasattr(metric, method) for method in ("update", "compute", "reset"))


def own_copies(metrics: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Copies for one split: an epoch of training is open while another split is evaluated."""
    for name, metric in metrics.items():
        if name in RESERVED:
            raise MetricError(
                f"a metric cannot be named {name!r}: that is what a step calls its own"
            )
        if not is_stateful(metric) and not callable(metric):
            raise MetricError(
                f"the metric {name!r} is neither a function nor has it update, compute and reset"
            )
    copies = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
    for metric in copies.values():
        if callable(getattr(metric, "to", None)):  # a module, or one like torcheval's
            metric.to(device)
        watch(metric)
    return copies


def reset(metrics: Mapping[str, Any]) -> None:
    """Let the metrics that are objects forget what they accumulated."""
    for metric in metrics.values():
        if is_stateful(metric):
            metric.reset()
            watch(metric)


def measure(metrics: Mapping[str, Any], output: Any, target: Any) -> dict[str, Any]:
    """Update the metrics that are objects, and compute those that are functions."""
    output = output.detach() if isinstance(output, Tensor) else output
    values: dict[str, Any] = {}
    for name, metric in metrics.items():
        if is_stateful(metric):
            metric.update(output, target)
        else:
            values |= scalars(name, metric(output, target), metric)
    return values


def scalars(name: str, value: Any, metric: Any) -> dict[str, Any]:
    """The numbers in the value of a metric by tag: one, those of a mapping, or one per class.

    The classes of a vector are named by the metric's `class_names`, a list, and else numbered. A
    function must have it: a vector of it may as well be one value per sample.

    Raises:
        MetricError: The value is nothing of these.

    Example:
        >>> def f1(output, target): return torch.tensor([0.25, 0.75])
        >>> f1.class_names = ["cat", "dog"]
        >>> scalars("f1", f1(None, None), f1)
        {'f1/cat': tensor(0.2500), 'f1/dog': tensor(0.7500)}
    """
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return {name: value}
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= scalars(f"{name}/{key}", item, metric)
        return found
    vector = as_vector(name, value)
    classes = getattr(metric, "class_names", None)
    if classes is None and is_stateful(metric):
        classes = range(len(vector))
    if classes is None or vector.ndim != 1:
        names = "" if vector.ndim != 1 else f", or name its classes, {name}.class_names = [...]"
        raise MetricError(
            f"the metric {name!r} gave shape {tuple(vector.shape)}: reduce it, as with "
            f".mean(){names}"
        )
    if len(classes) != len(vector):
        raise MetricError(
            f"the metric {name!r} gave {len(vector)} values, and class_names has {len(classes)}"
        )
    return {f"{name}/{key}": item for key, item in zip(classes, vector.unbind(), strict=True)}


def as_vector(name: str, value: Any) -> Tensor:
    """A list or an array of numbers as a tensor.

    Raises:
        MetricError: The value is no list or array of numbers.
    """
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise MetricError(
            f"the metric {name!r} gave a {type(value).__name__}, which is no number"
        ) from None


def check_mergeable(metrics: Mapping[str, Any]) -> None:
    """Refuse metrics that would see the samples of one process only.

    Raises:
        MetricError: A metric that is an object cannot be merged with those of other processes.
    """
    for name, metric in all_metrics(metrics):
        mergeable = accumulators(metric) or hasattr(metric, "merge_state")
        if is_stateful(metric) and not mergeable:
            raise MetricError(
                f"the metric {name!r} ({type(metric).__name__}) cannot be merged over several "
                "processes: use one of torchmetrics, give it merge_state(others), or make it a "
                "function of (output, target), which is averaged over all samples"
            )


def value_over(world: World, metric: Any) -> Any:
    """The value of a metric over what it accumulated on all processes."""
    if world.size == 1:
        return metric.compute()
    if accumulators(metric):  # those of torchmetrics gather by themselves
        with warnings.catch_warnings():
            # that there was no update: a process may get no batch of a small split
            warnings.filterwarnings("ignore", r"The ``compute`` method", UserWarning)
            return metric.compute()
    own = copy.deepcopy(metric)
    use(own)
    if callable(getattr(own, "to", None)):
        own.to("cpu")
    first, *others = world.gather(own)
    first.merge_state(others)
    return first.compute()


def compute(metrics: Mapping[str, Any], world: World | None = None) -> dict[str, float]:
    """The values of the metrics that are objects, and that a process has updated; a collective.

    Args:
        metrics: The metrics by name.
        world: The processes over which they are computed; this one alone if None.
    """
    world = world or World()
    own = [name for name, metric in metrics.items() if is_stateful(metric) and is_used(metric)]
    used = set().union(*world.gather(own)) if metrics else set()
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        if name in used:
            found = scalars(name, value_over(world, metric), metric)
            values |= {tag: float(value) for tag, value in found.items()}
    return values


def metric_state(metric: Any) -> dict[str, Any]:
    """The state that a metric has accumulated."""
    if isinstance(metric, nn.ModuleDict):
        list(metric.values())  # lets a MetricCollection give its members what they share
    parts = accumulators(metric)
    if parts:
        return {path: accumulated(part) for path, part in parts.items()}
    state = dict(metric.state_dict() if hasattr(metric, "state_dict") else vars(metric))
    return {name: value for name, value in state.items() if not isinstance(value, Unused)}


def load_metric_state(metric: Any, state: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
    """Go on accumulating, from what one process accumulated or several did.

    Raises:
        MetricError: The states of several processes cannot be merged.
    """
    _load_state(metric, state)
    for other in others:
        part = copy.deepcopy(metric)
        part.reset()
        _load_state(part, other)
        try:
            metric.merge_state(part if accumulators(metric) else [part])
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            kind = type(metric).__name__
            raise MetricError(
                f"what {kind} accumulated on several processes cannot be merged: {error}"
            ) from error


def _load_state(metric: Any, state: Mapping[str, Any]) -> None:
    use(metric)
    parts = accumulators(metric)
    if parts:
        for path, values in state.items():
            restore(parts[path], values)
    elif hasattr(metric, "load_state_dict"):
        metric.load_state_dict(state)
    else:
        restore(metric, state)


def accumulators(metric: Any) -> dict[str, nn.Module]:
    """A metric of torchmetrics and those in it: its `state_dict` leaves out what they add up."""
    modules = dict(metric.named_modules()) if isinstance(metric, nn.Module) else {}
    found = any(hasattr(module, "_defaults") for module in modules.values())
    return modules if found else {}


def accumulated(part: nn.Module) -> dict[str, Any]:
    """Tensors, lists of tensors and plain values of a module."""
    return {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, Tensor | Real | str | None)
        or (isinstance(value, list) and all(isinstance(item, Tensor) for item in value))
    }


def restore(owner: Any, state: Mapping[str, Any]) -> None:
    """Set attributes, tensors on the device where they belong."""
    for name, value in state.items():
        before = getattr(owner, name, None)
        device = before.device if isinstance(before, Tensor) else getattr(owner, "device", None)
        setattr(owner, name, value if device is None else move(value, device))
