"""The values that optimizers and schedulers were made with, so that new ones win on resume.

`load_state_dict` of torch overwrites learning rates, decay and the horizon of a schedule with those
of the checkpoint. Who resumes with another value means it: a checkpoint holds what the parts were
made with, and what differs from that now is kept, while everything that training moved is restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain, islice, repeat, zip_longest
from typing import Any

import torch

from danling.checkpoint.encoding import named
from danling.optimization.movement import closed_form, state_of
from danling.optimization.optimization import Optimization

__all__ = ["changes", "made_with", "restore_optimization"]


State = dict[str, Any]


def made_with(optimization: Optimization) -> State:
    """The arguments that optimizers and schedulers were made with, when first asked for."""
    if optimization.made_with is None:
        groups = {
            name: [
                {key: group[key] for key in group if key != "params"} for group in part.param_groups
            ]
            for name, part in optimization.optimizers.items()
        }
        schedules = {name: state_of(part) for name, part in optimization.schedulers.items()}
        optimization.made_with = deepcopy({"optimizer": groups, "scheduler": schedules})
    return optimization.made_with


def restore_optimization(optimization: Optimization, checkpoint: Mapping[str, Any]) -> None:
    """Load optimizers and schedulers, with the values that they were made with now."""
    then, now = checkpoint["run"]["given"], made_with(optimization)
    optimization.load_state_dict(keep_new_values(optimization, checkpoint, then, now))
    move_to_schedule(optimization, then, now)


def changes(then: State, now: State) -> list[str]:
    """A line for each value that differs, except those that follow from another."""
    return [
        f"{path} was {old!r}, now it is {new!r}"
        for path, old, new in _differences("", then, now)
        if path.rpartition(".")[2] not in ("initial_lr", "base_lrs", "_last_lr")
        and not path.rpartition(".")[2].startswith("_")
    ]


def keep_new_values(
    optimization: Optimization, checkpoint: Mapping[str, Any], then: State, now: State
) -> State:
    """The states of a checkpoint, with the values that are other ones now.

    A learning rate that a schedule moves is scaled by as much as the one it began with.
    """
    states: State = dict(checkpoint)
    for kind in ("optimizer", "scheduler"):
        if checkpoint[kind] is None or _same(then.get(kind), now[kind]):
            continue
        merged = {
            name: _merged_part(kind, state, then[kind].get(name), now[kind].get(name))
            for name, state in named(checkpoint[kind]).items()
        }
        states[kind] = merged[""] if list(merged) == [""] else {"by_name": merged}
    return states


def move_to_schedule(optimization: Optimization, then: State, now: State) -> None:
    """Set the learning rates that schedules with other values have at this point."""
    for name, scheduler in optimization.schedulers.items():
        if _same(then["scheduler"].get(name), now["scheduler"].get(name)):
            continue
        if not hasattr(scheduler, "optimizer"):
            continue
        groups = scheduler.optimizer.param_groups
        if (rates := closed_form(scheduler)) is not None:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        scheduler._last_lr = [group["lr"] for group in groups]


def _merged_part(kind: str, state: Any, then: Any, now: Any) -> Any:
    if then is None or now is None or kind == "scheduler":
        return _merged(state, then, now)
    begun: Iterator[tuple[State, State]] = islice(
        zip_longest(then, now, fillvalue={}), len(state["param_groups"])
    )
    given = chain(begun, repeat(({}, {})))  # groups that came while it trained
    groups = [
        _merged_group(group, *two) for group, two in zip(state["param_groups"], given, strict=False)
    ]
    return {**state, "param_groups": groups}


def _merged_group(state: State, then: State, now: State) -> State:
    merged = {key: _merged(state[key], then.get(key), now.get(key)) for key in state}
    before, after = then.get("initial_lr"), now.get("initial_lr")
    if before and after is not None:  # a schedule moves it
        merged["lr"] = state["lr"] if _same(before, after) else state["lr"] * after / before
    return merged


def _merged(state: Any, then: Any, now: Any) -> Any:
    """The value of the checkpoint, unless another one was given than then."""
    if now is None or then is None or _same(then, now):
        return state
    if all(isinstance(value, dict) for value in (state, then, now)):
        return {key: _merged(state[key], then.get(key), now.get(key)) for key in state}
    three = (state, then, now)
    if all(isinstance(value, list) for value in three) and len(state) == len(then) == len(now):
        return [_merged(*items) for items in zip(*three, strict=True)]
    return now


def _differences(path: str, then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if _same(then, now):
        return []
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in now if key in then]
        pairs = [(f"{path}.{key}" if key else path, then[key], now[key]) for key in keys]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        label = f"{path}[{{}}]" if len(then) > 1 else path
        pairs = [(label.format(i), *pair) for i, pair in enumerate(zip(then, now, strict=True))]
    else:
        return [(path.removeprefix("."), then, now)]
    return [found for pair in pairs for found in _differences(*pair)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool((one.cpu() == other.cpu()).all())
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
