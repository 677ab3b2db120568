"""Metrics: functions of (output, target), and objects with `update`, `compute` and `reset`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any, Final

from torch import Tensor, nn

from danling.distributed.world import World
from danling.errors import MetricError
from danling.transfer import move

__all__ = [
    "RESERVED",
    "check_mergeable",
    "compute",
    "is_stateful",
    "load_metric_state",
    "measure",
    "metric_state",
    "own_copies",
    "reset",
]


RESERVED: Final = frozenset({"loss", "n"})
"""What the output of a step holds besides metrics."""


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
    return copies


def reset(metrics: Mapping[str, Any]) -> None:
    """Let the metrics that are objects forget what they accumulated."""
    for metric in metrics.values():
        if is_stateful(metric):
            metric.reset()


def measure(metrics: Mapping[str, Any], output: Any, target: Any) -> dict[str, Any]:
    """Update the metrics that are objects, and compute those that are functions."""
    output = output.detach() if isinstance(output, Tensor) else output
    values = {}
    for name, metric in metrics.items():
        if is_stateful(metric):
            metric.update(output, target)
        else:
            values[name] = single(name, metric(output, target))
    return values


def single(name: str, value: Any) -> Any:
    """The value of a metric, if it is one number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise MetricError(
            f"the metric {name!r} gave shape {tuple(value.shape)}: reduce it, as with .mean()"
        )
    if not isinstance(value, Tensor | Real):
        raise MetricError(f"the metric {name!r} gave a {type(value).__name__}, which is no number")
    return value


def check_mergeable(metrics: Mapping[str, Any]) -> None:
    """Refuse metrics that would see the samples of one process only.

    Raises:
        MetricError: A metric that is an object cannot be merged with those of other processes.
    """
    for name, metric in metrics.items():
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
    if callable(getattr(own, "to", None)):
        own.to("cpu")
    first, *others = world.gather(own)
    first.merge_state(others)
    return first.compute()


def compute(metrics: Mapping[str, Any], world: World | None = None) -> dict[str, float]:
    """The values of the metrics that are objects; one that returns a mapping gives several.

    Args:
        metrics: By name.
        world: The processes over which they are computed; this one alone if None.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        if is_stateful(metric):
            value = value_over(world or World(), metric)
            if isinstance(value, Mapping):
                values |= {f"{name}/{key}": number(name, item) for key, item in value.items()}
            else:
                values[name] = number(name, value)
    return values


def number(name: str, value: Any) -> float:
    """The value of a metric on the host."""
    return float(single(name, value))


def metric_state(metric: Any) -> dict[str, Any]:
    """What a metric has accumulated."""
    if isinstance(metric, nn.ModuleDict):
        list(metric.values())  # lets a MetricCollection give its members what they share
    parts = accumulators(metric)
    if parts:
        return {path: accumulated(part) for path, part in parts.items()}
    return dict(metric.state_dict() if hasattr(metric, "state_dict") else vars(metric))


def load_metric_state(metric: Any, state: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
    """Go on accumulating, from what one process accumulated or several did.

    Raises:
        MetricError: What several accumulated cannot be merged.
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
