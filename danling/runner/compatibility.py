"""Whether a checkpoint fits a runner: compared before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.parameter import is_lazy

from danling.checkpoint.encoding import named
from danling.checkpoint.sharded.state import ModelState, plain_name
from danling.config import Config
from danling.config.mapping import difference
from danling.config.settings import STATE_KEYS
from danling.errors import CheckpointError
from danling.files.json import to_plain
from danling.optimization import Optimization

__all__ = [
    "check_complete",
    "check_model",
    "check_parts",
    "check_weights",
    "config_changes",
    "kinds",
    "obstacles",
    "part_problems",
    "refuse_unfit",
    "surrounding_changes",
    "surroundings",
]


_OPTIMIZATION = ("model", "optimizer", "scheduler", "scaler")
_REQUIRED = (*_OPTIMIZATION, "config", "results", "callbacks", "data", "rng", "run")
_SHOWN = 8  # problems in a message


def kinds(optimization: Optimization) -> dict[str, dict[str, str]]:
    """The classes of optimizers and schedulers, by name."""
    return {
        kind: {name: type(part).__name__ for name, part in parts.items()}
        for kind, parts in _parts(optimization).items()
    }


def surroundings(accelerator: Accelerator) -> dict[str, str]:
    """What else decides about the last bits of a computation."""
    return {
        "torch": str(torch.__version__),
        "mixed_precision": str(accelerator.mixed_precision),
        "device": accelerator.device.type,
    }


def surrounding_changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of the surroundings is other than it was."""
    return [
        f"{key} {then[key]} -> {now[key]}" for key in now if then.get(key, now[key]) != now[key]
    ]


def check_complete(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse what a run cannot go on from.

    Raises:
        CheckpointError: It holds only weights, or a part of it is gone.
    """
    if "data" not in checkpoint and "rng" not in checkpoint:
        raise CheckpointError(
            f"{path} holds only weights and configuration (save_weights_only): a run goes on from "
            "latest.pth; load_checkpoint(path, strict=False) takes the weights alone"
        )
    missing = [key for key in _REQUIRED if key not in checkpoint]
    if missing:
        raise CheckpointError(f"{path} is not complete: {', '.join(missing)} is not in it")


def check_model(
    optimization: Optimization, checkpoint: Mapping[str, Any], path: Path, *, strict: bool
) -> list[str]:
    """Compare names, shapes and types of weights.

    Returns:
        What does not fit and is left out, where `strict` is not set.

    Raises:
        CheckpointError: Something does not fit; nothing was changed.
    """
    wrong, other = _model_problems(optimization.model_state, checkpoint["model"])
    refuse_unfit(path, wrong + other if wrong or strict else [])
    return other


def check_parts(
    optimization: Optimization, checkpoint: Mapping[str, Any], path: Path, *, strict: bool
) -> list[str]:
    """Compare the optimizers and their groups, and the schedulers.

    Returns:
        What does not fit and is left out, where `strict` is not set.

    Raises:
        CheckpointError: Something does not fit.
    """
    problems = part_problems(optimization, checkpoint)
    refuse_unfit(path, problems if strict else [])
    return problems


def refuse_unfit(path: Path, problems: list[str]) -> None:
    """Raise an error that names the first of the problems, if there are any.

    Raises:
        CheckpointError: There are.
    """
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN])
        raise CheckpointError(f"{path} does not fit this run: {shown}{more}")


def check_weights(model: ModelState, state: Mapping[str, Any], path: Path) -> list[str]:
    """Compare weights alone; returns which are on one side only.

    Raises:
        CheckpointError: Shapes differ; nothing was changed.
    """
    wrong, other = _model_problems(model, state)
    refuse_unfit(path, wrong)
    return other


def part_problems(optimization: Optimization, checkpoint: Mapping[str, Any]) -> list[str]:
    """What of the optimizers and schedulers does not fit; nothing where there is no optimizer."""
    recorded, now = checkpoint["run"].get("kinds", {}), kinds(optimization)
    problems: list[str] = []
    if now["optimizer"]:
        problems += _engine_problems(optimization.model_state, checkpoint.get("engine"))
    for kind, parts in _parts(optimization).items():
        if not now["optimizer"]:
            break  # nothing will be trained
        saved = named(checkpoint[kind])
        problems += (f"missing {_label(kind, name)}" for name in parts if name not in saved)
        problems += (f"unexpected {_label(kind, name)}" for name in saved if name not in parts)
        for name in parts.keys() & saved.keys():
            then = recorded.get(kind, {}).get(name, now[kind][name])
            if then != now[kind][name]:
                problems.append(f"{_label(kind, name)} was {then}, now it is {now[kind][name]}")
            elif kind == "optimizer":
                groups = optimization.groups(name)
                problems += _group_problems(_label(kind, name), groups, saved[name])
    return problems


def obstacles(run: Mapping[str, Any], now: Mapping[str, int]) -> list[str]:
    """What of the run itself makes an exact continuation impossible.

    Args:
        run: The part `run` of the checkpoint.
        now: The number of processes and of micro-batches in a step.
    """
    found = [f"{key} {run[key]} -> {value}" for key, value in now.items() if run[key] != value]
    if crash := run.get("crash"):
        found.append(f"it was saved in the middle of a step that failed ({crash})")
    elif place := run.get("unsafe"):
        found.append(f"it was saved {place}")
    return found


def config_changes(config: Config, saved: Mapping[str, Any]) -> list[str]:
    """A line for each value that the configuration now says otherwise: it wins."""
    now = to_plain(config.resolved())
    then = {key: value for key, value in saved.items() if key not in (*STATE_KEYS, "resume")}
    now.pop("resume", None)
    pairs = difference(dict(_leaves(now)), dict(_leaves(then))).items()
    return [f"config: {key} was {old!r}, now it is {new!r}" for key, (new, old) in pairs]


def _model_problems(
    model: ModelState, state: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """What cannot be loaded at all, and what can be left out."""
    if model.plain is None or state is None:
        return [], []
    own, state = model.describe(), {plain_name(name): value for name, value in state.items()}
    other = [f"missing weight {name}" for name in own if name not in state]
    other += [f"unexpected weight {name}" for name in state if name not in own]
    wrong = []
    for name in own.keys() & state.keys():
        then, now = state[name], own[name]
        if not (isinstance(then, torch.Tensor) and isinstance(now, torch.Tensor)):
            continue
        if is_lazy(now) or is_lazy(then):
            continue  # it takes the shape that it is given
        if then.shape != now.shape:
            shapes = f"{tuple(then.shape)}, in the model {tuple(now.shape)}"
            wrong.append(f"{name} has the shape {shapes}")
        elif then.dtype != now.dtype:
            other.append(f"{name} is {then.dtype}, in the model {now.dtype}")
    return sorted(wrong), other


def _engine_problems(model: ModelState, then: Mapping[str, int] | None) -> list[str]:
    now = model.layout()
    if then == now:
        return []
    if then is None or now is None:
        was, it_is = (" not", "") if then is None else ("", " not")
        return [f"the optimizer was{was} in an engine of DeepSpeed, now it is{it_is}"]
    said = [f"stage {each['stage']} on {each['size']} processes" for each in (then, now)]
    return [f"DeepSpeed had {said[0]}, now {said[1]}"]


def _group_problems(label: str, groups: Sequence[Sequence[Any]], state: Any) -> list[str]:
    saved = [list(group["params"]) for group in state["param_groups"]]
    then, now = [len(group) for group in saved], [len(group) for group in groups]
    if then != now:
        return [f"{label} had groups of {then} parameters, now of {now}"]
    pairs = [pair for both in zip(saved, groups, strict=True) for pair in zip(*both, strict=True)]
    other = [f"{one} is now {two}" for one, two in pairs if one != two]
    return [f"{label} has other parameters: {', '.join(other[:_SHOWN])}"] if other else []


def _parts(optimization: Optimization) -> dict[str, Mapping[str, Any]]:
    return {"optimizer": optimization.optimizers, "scheduler": optimization.schedulers}


def _label(kind: str, name: str) -> str:
    return f"{kind} {name!r}" if name else kind


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value
