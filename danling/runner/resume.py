"""A run goes on from one of its checkpoints: which one, whether it fits, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parameter import is_lazy

from danling.checkpoint.encoding import named
from danling.checkpoint.reading import read_together
from danling.checkpoint.sharded.state import ModelState, plain_name
from danling.checkpoint.store import CheckpointStore
from danling.config import Config
from danling.config.mapping import difference
from danling.config.settings import STATE_KEYS
from danling.distributed.world import World
from danling.errors import CheckpointError, ResumeError
from danling.files.json import dotted, to_plain
from danling.optimization.hyperparameters import changes, made_with
from danling.optimization.models import parts_of
from danling.optimization.optimization import Optimization
from danling.runner.parts import take_assigned
from danling.seed import set_rng_state

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = [
    "check_complete",
    "check_model",
    "check_optimization",
    "check_weights",
    "config_changes",
    "find_checkpoint",
    "kinds",
    "obstacles",
    "optimization_problems",
    "refuse_unfit",
    "report",
    "restore",
    "restore_streams",
    "resume",
    "surrounding_changes",
    "surroundings",
    "warn_of_newer",
]


def find_checkpoint(
    store: CheckpointStore, which: str, world: World, logger: logging.Logger
) -> tuple[Mapping[str, Any], Path] | None:
    """The checkpoint that a run goes on from; None where it has none yet. A collective.

    Args:
        store: The checkpoints of the run.
        which: The name or the path of the one to go on from.
        world: The processes of the run.
        logger: The log of the run.

    Raises:
        CheckpointError: There is none that is whole.
        ResumeError: It belongs to another run, or lies in a folder of another name.
    """
    for line in world.on_main(store.clean):
        logger.warning("checkpoints: %s", line)
    if which == "latest" and world.on_main(store.is_empty):
        world.on_main(lambda: check_other_folders(store.directory))
        logger.info("it has no checkpoint yet: training starts from its beginning")
        return None
    checkpoint, path = read_together(world, lambda: choose(store, which))
    check_own(store, checkpoint, path)
    return checkpoint, path


def file_of(path: str | Path) -> Path:
    """The checkpoint file that a path means; of a directory it is the latest in it.

    Raises:
        CheckpointError: There is no checkpoint in the directory.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for pattern in ("latest.pth", "*/latest.pth"):
        if found := sorted(path.glob(pattern)):
            return found[0]
    others = sorted([*path.glob("*.pth"), *path.glob("*/*.pth")])
    names = ", ".join(str(other.relative_to(path)) for other in others)
    raise CheckpointError(
        f"{path} is a directory without a latest.pth: "
        + (f"name one of its files ({names})" if others else "there is no checkpoint in it")
    )


def choose(store: CheckpointStore, which: str) -> tuple[dict[str, Any], Path]:
    """The checkpoint of a name or path; `latest` is the newest that a run can go on from."""
    first = checkpoint, path = store.load(which, whole=False)
    if which != "latest" or _is_safe(checkpoint):
        return first
    for entry in store.candidates():  # `best` may be newer, and hold only weights
        with suppress(CheckpointError):
            checkpoint, path = store.load(entry.path, whole=False)
            if _is_safe(checkpoint):
                return checkpoint, path
    if "data" in first[0]:
        return first
    raise CheckpointError(f"all valid checkpoints in {store.directory} hold only weights")


def _is_safe(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run can go on exactly from it: it holds all, and is of a safe point."""
    return "data" in checkpoint and checkpoint["run"].get("unsafe") is None


def check_other_folders(directory: Path) -> None:
    """Refuse to start afresh where the checkpoints are in a folder of another name."""
    for found in sorted(directory.parent.glob("*/latest.pth")):
        if found.parent != directory:
            raise ResumeError(
                f"there is no checkpoint in {directory}, but there is {found}: set "
                f"checkpoint_dir_name={found.parent.name!r}"
            )


def check_own(store: CheckpointStore, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on in this directory from a checkpoint of another run."""
    found = checkpoint.get("run", {}).get("uuid")
    if found is not None and found != store.run:
        raise ResumeError(
            f"{path} belongs to the run {found}, and lies in the directory of {store.run}: to "
            "start a new run from it, use AccelerateRunner.from_checkpoint"
        )


def report(logger: logging.Logger, found: Mapping[str, Any], path: Path) -> None:
    """Log where the run goes on, how exactly, and what is other than it was."""
    for change in found["changes"]:
        logger.info("%s", change)
    logger.log(
        logging.WARNING if found["reasons"] else logging.INFO,
        "resumed from %s at epoch %d, global step %d: %s",
        path,
        found["epoch"],
        found["global_step"],
        f"not exactly, since {'; '.join(found['reasons'])}" if found["reasons"] else "exactly",
    )


def warn_of_newer(
    logger: logging.Logger, world: World, store: CheckpointStore, global_step: int
) -> None:
    """Say where newer checkpoints than the one that was loaded stay; a collective."""
    newest = world.on_main(lambda: max(entry.global_step for entry in store.candidates()))
    if newest > global_step:
        logger.warning(
            "the run goes back from global step %d to %d: newer checkpoints stay until training "
            "writes new ones of their names",
            newest,
            global_step,
        )


def resume(runner: AccelerateRunner) -> None:
    """Load the checkpoint that the run goes on from, if there is one."""
    if runner.run.message:
        runner.logger.info("%s", runner.run.message)
    made_with(runner.optimization)
    if runner.run.checkpoint is None:
        return
    found = find_checkpoint(runner.checkpoints, runner.run.checkpoint, runner.world, runner.logger)
    if found is not None:
        restore(runner, *found)
        report(runner.logger, runner.resume_report or {}, found[1])
        warn_of_newer(runner.logger, runner.world, runner.checkpoints, runner.global_step)
    runner.accept_directory()


def restore(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path, *, strict: bool = True
) -> None:
    """Take a checkpoint: everything is compared before anything is changed."""
    runner.prepare()
    optimization, contents = runner.optimization, runner._contents
    made_with(optimization)  # before anything changes it
    if not strict and "data" not in checkpoint:
        left_out = contents.restore_weights(optimization, checkpoint, path)
        runner.logger.warning("%s: %s", path, "; ".join(["only weights were loaded", *left_out]))
        return
    accum_steps = runner.accum_steps_in(checkpoint.get("data", {}).get("epoch", 0))
    problems = [runner.run.doubt] if runner.run.doubt else []
    assigned = checkpoint.get("run", {}).get("assigned", {})

    @contextmanager
    def with_callbacks() -> Iterator[Optimization]:
        with runner.callbacks.kept_on_error(), runner._assigned.explained(assigned):
            problems.extend(runner._load_callbacks(checkpoint, strict=strict))
            take_assigned(runner, checkpoint["data"]["epoch"])  # some assign parts again
            yield runner.optimization

    reasons = runner.world.together(
        lambda: contents.compare(checkpoint, path, accum_steps, strict, with_callbacks())
    )
    optimization, made = runner.optimization, made_with(runner.optimization)
    checkpoint = contents.restore_model_and_optimizers(optimization, checkpoint, path, strict)
    reasons += problems + runner._assigned.take_up(assigned, runner.data.fingerprints)
    reasons += contents.restore_changes(optimization, checkpoint)
    take_modes(runner)
    runner._loaded_rng = contents.restore_streams(checkpoint)
    runner._places = contents.places(checkpoint)
    runner._load_counters(checkpoint)
    run, other = checkpoint["run"], config_changes(runner.config, checkpoint["config"])
    runner.resume_report = {
        "exact": not reasons,
        "reasons": reasons,
        "changes": other + changes(run["given"], made),
        "checkpoint": path.name,
        "run": run["uuid"],
        "epoch": runner.epoch,
        "global_step": runner.global_step,
    }
    runner.callbacks("on_load", runner, checkpoint)


def take_modes(runner: AccelerateRunner) -> None:
    """Leave a model that a training had in evaluation mode as it was."""
    plain = runner.unwrapped_model
    pairs = list(zip(parts_of(plain), parts_of(runner.model), strict=True))
    if any(isinstance(part, nn.Module) and not part.training for part, _ in pairs):
        runner._modes_are_loaded = True
        for part, wrapped in pairs:
            wrapped.training = part.training


def restore_streams(runner: AccelerateRunner) -> None:
    """Put the random streams back, once, right before the first batch after a resume."""
    state, runner._loaded_rng = runner._loaded_rng, None
    found = runner.resume_report
    if state is None or not (problems := set_rng_state(state)) or found is None:
        return
    runner.resume_report = found | {"exact": False, "reasons": found["reasons"] + problems}
    runner.logger.warning("the random streams are not exactly restored: %s", problems)


_OPTIMIZATION = ("model", "optimizer", "scheduler", "scaler")
_REQUIRED = (*_OPTIMIZATION, "config", "results", "callbacks", "data", "rng", "run")
_SHOWN = 8  # problems in a message


def kinds(optimization: Optimization) -> dict[str, dict[str, str]]:
    """The classes of optimizers and schedulers, by name."""
    return {
        kind: {name: type(part).__name__ for name, part in parts.items()}
        for kind, parts in _by_kind(optimization).items()
    }


def surroundings(accelerator: Accelerator) -> dict[str, str]:
    """The other things that decide about the last bits of a computation."""
    return {
        "torch": str(torch.__version__),
        "mixed_precision": str(accelerator.mixed_precision),
        "device": accelerator.device.type,
    }


def surrounding_changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The surroundings that have changed."""
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
        The problems that are left out, where `strict` is not set.

    Raises:
        CheckpointError: Something does not fit; nothing was changed.
    """
    wrong, other = _model_problems(optimization.model_state, checkpoint["model"])
    refuse_unfit(path, wrong + other if wrong or strict else [])
    return other


def check_optimization(
    optimization: Optimization, checkpoint: Mapping[str, Any], path: Path, *, strict: bool
) -> list[str]:
    """Compare the optimizers and their groups, and the schedulers.

    Returns:
        The problems that are left out, where `strict` is not set.

    Raises:
        CheckpointError: Something does not fit.
    """
    problems = optimization_problems(optimization, checkpoint)
    refuse_unfit(path, problems if strict else [])
    return problems


def refuse_unfit(path: Path, problems: list[str]) -> None:
    """Raise an error that names the first of the problems, if there are any.

    Raises:
        CheckpointError: There is at least one problem.
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


def optimization_problems(optimization: Optimization, checkpoint: Mapping[str, Any]) -> list[str]:
    """The optimizers and schedulers that do not fit; none where there is no optimizer."""
    recorded, now = checkpoint["run"].get("kinds", {}), kinds(optimization)
    problems: list[str] = []
    if now["optimizer"]:
        problems += _engine_problems(optimization.model_state, checkpoint.get("engine"))
    for kind, parts in _by_kind(optimization).items():
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
    """The reasons in the run itself that make an exact continuation impossible.

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
    pairs = difference(dotted(now), dotted(then)).items()
    return [f"config: {key} was {old!r}, now it is {new!r}" for key, (new, old) in pairs]


def _model_problems(
    model: ModelState, state: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """The weights that cannot be loaded at all, and those that can be left out."""
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
    now = model.partitioning()
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


def _by_kind(optimization: Optimization) -> dict[str, Mapping[str, Any]]:
    return {"optimizer": optimization.optimizers, "scheduler": optimization.schedulers}


def _label(kind: str, name: str) -> str:
    return f"{kind} {name!r}" if name else kind
