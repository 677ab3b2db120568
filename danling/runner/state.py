"""What is in a checkpoint, and how a runner takes it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from danling.checkpoint.catalog import checked_names
from danling.checkpoint.reading import read_checkpoint, read_together
from danling.checkpoint.saving import Save
from danling.checkpoint.sharded.state import load_model_state, model_state, read_shards, saves_whole
from danling.config.settings import STATE_KEYS
from danling.distributed.sharding import is_partial
from danling.errors import CheckpointError, ResumeError
from danling.files.json import to_plain
from danling.optimization.hyperparameters import changes, given_to, restore_optimization
from danling.runner.callbacks import restore_callbacks
from danling.runner.compatibility import (
    check_complete,
    check_parts,
    check_weights,
    config_changes,
    kinds,
    obstacles,
    part_problems,
    surroundings,
)
from danling.seed import derive, rng_state, seed_everything, set_rng_state
from danling.triggers import Moment

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["build", "load", "restore", "restore_rng", "save", "take", "take_alone"]


R = TypeVar("R", bound="AccelerateRunner")


def take(runner: AccelerateRunner) -> dict[str, Any]:
    """Everything that the run needs to go on from here; a collective.

    Of a sharded model each process gets the parts that it has, unless checkpoints are one file.
    """
    return contents(runner, runner.world.gather, saves_whole(runner))


def take_alone(runner: AccelerateRunner) -> dict[str, Any]:
    """The same as far as this process has it, where others may be gone.

    Replicas have the same weights and optimizer; the others' random streams, open averages and
    places in their data are missing.

    Raises:
        CheckpointError: This process has only a part of the weights.
    """
    if runner.distributed and is_partial(runner.model):
        raise CheckpointError("each process holds a part of the weights, and one of them is gone")
    return contents(runner, lambda value: [value], whole=True)


def contents(
    runner: AccelerateRunner, gather: Callable[[Any], list[Any]], whole: bool
) -> dict[str, Any]:
    """What is in a checkpoint; `gather` collects what each process has of its own."""
    counters, model = runner.counters, runner.model
    weights = None if model is None else model_state(model, runner.unwrapped_model, whole)
    for callback in runner.callbacks:  # what scored is what is saved: as an average of the weights
        if (to_save := getattr(callback, "weights_to_save", None)) is not None:
            weights = to_save(runner, weights)
    return {
        "model": weights,
        **runner.optimization.state_dict(whole),
        "config": to_plain(runner.config.resolved() | runner.config.to_dict(state=True)),
        "results": runner.history.settled,
        "callbacks": {callback.name: callback.state_dict() for callback in runner.callbacks}
        | runner.foreign_state,
        "data": {
            **asdict(counters),
            "loaders": gather(runner.loader_states()),
            "open": gather(runner.loop_state()),
            "last_evaluation": asdict(runner.last_evaluation),
        },
        "rng": gather(rng_state()),
        "run": {
            "uuid": str(runner.uuid),
            "world_size": runner.world_size,
            "accum_steps": runner.accum_steps,
            "seconds": runner.clock.seconds,
            "stop_reason": runner.stop_reason,
            "unsafe": runner.unsafe,
            "surroundings": surroundings(runner),
            "kinds": kinds(runner),
            "given": given_to(runner),
            "resume_report": runner.resume_report,
        },
    }


def save(runner: AccelerateRunner, names: Sequence[str]) -> Path:
    """Commit what `take` gives, at the next safe point if this is none, and tell the callbacks."""
    runner.close_step()
    names, place = checked_names(names), runner.unsafe
    path = runner.checkpoints.directory / f"{names[0]}.pth"
    if place and runner.defers(names, partial(save, runner, names)):
        return path
    if place:  # `latest` stays what a run can go on from
        number = f"step-{runner.global_step}"
        names = tuple(dict.fromkeys(number if name == "latest" else name for name in names))
        path = path.with_name(f"{names[0]}.pth")
        runner.logger.warning("%s is saved %s: no run goes on exactly from it", path.name, place)
    Save.of(runner, names, take(runner)).commit(runner.world, runner.checkpoints)
    runner.callbacks("on_save", runner, path)
    return path


def load(runner: AccelerateRunner, path: Path, *, strict: bool = True) -> None:
    """Read a checkpoint file for every process, and take it."""
    checkpoint, path = read_together(
        runner.world, lambda: (read_checkpoint(path, whole=False), path)
    )
    restore(runner, checkpoint, path, strict=strict)


def restore(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path, *, strict: bool = True
) -> None:
    """Take a checkpoint: everything is compared before anything is changed."""
    runner.prepare()
    given_to(runner)
    if not strict and "data" not in checkpoint:
        restore_weights(runner, checkpoint, path)
        return
    reasons = runner.world.together(lambda: compare(runner, checkpoint, path, strict))
    checkpoint = read_shards(runner, checkpoint, path)
    data, run = checkpoint["data"], checkpoint["run"]
    if runner.model is not None:
        weights = checkpoint["model"]
        load_model_state(runner.model, runner.unwrapped_model, weights, strict=strict)
    if not part_problems(runner, checkpoint):  # else it is not strict, and left out
        restore_optimization(runner, checkpoint)
    for name in ("epoch", "global_step", "batch_index"):
        setattr(runner.counters, name, data[name])
    runner.history.restore(checkpoint["results"])
    runner.clock.before = run["seconds"]
    runner.last_evaluation = Moment(**data["last_evaluation"])
    restore_own(runner, data["open"], checkpoint["rng"])
    reasons += restore_callbacks(runner, checkpoint["callbacks"], strict=strict)
    runner.resume_report = {
        "exact": not reasons,
        "reasons": reasons,
        "changes": config_changes(runner, checkpoint["config"])
        + changes(run["given"], given_to(runner)),
        "checkpoint": path.name,
        "run": run["uuid"],
        "epoch": runner.epoch,
        "global_step": runner.global_step,
    }
    runner.callbacks("on_load", runner, checkpoint)


def restore_weights(runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load the weights of a file that has nothing else."""
    left_out = check_weights(runner.unwrapped_model, checkpoint["model"], path)
    weights = read_shards(runner, checkpoint, path)["model"]
    load_model_state(runner.model, runner.unwrapped_model, weights, strict=False)
    runner.logger.warning("%s: %s", path, "; ".join(["only weights were loaded", *left_out]))


def restore_own(
    runner: AccelerateRunner, states: Sequence[Mapping[str, Any]], streams: Sequence[dict[str, Any]]
) -> None:
    """Take what was each process's own: open averages and metrics, and random streams.

    Where the number of processes has changed, the main one goes on with the sums of all, and a
    process that was not there begins streams of its own.
    """
    if len(states) == runner.world_size:
        runner.load_loop_state(states[runner.rank])
    elif runner.is_main_process:
        runner.load_loop_state(*states)
    if runner.rank < len(streams):
        runner.pending_rng = streams[runner.rank]
    else:
        seed = derive(int(runner.config.seed or 0), "step", runner.global_step)
        seed_everything(seed, runner.rank)
        runner.pending_rng = rng_state()


def adopt_drawn_seed(runner: AccelerateRunner, saved: Mapping[str, Any]) -> None:
    """Go on with the seed that the run drew, where this process was not given one either."""
    if runner.config.drawn_seed and saved["seed"] != runner.config.seed:
        runner.config.record_drawn_seed(saved["seed"])
        runner.forget_loaders()


def restore_loaders(runner: AccelerateRunner, data: Mapping[str, Any]) -> list[str]:
    """Set the loaders of training to where they were; returns why they are not exactly there."""
    states = data["loaders"]
    own = states[runner.rank] if len(states) == runner.world_size else states[0]
    reasons: list[str] = []
    for split, state in own.items():
        if split in runner.splits:
            reasons += runner.loader(split).load_state_dict(state, elastic=runner.config.elastic)
            runner.remember_loader(split)
    return reasons


def build(cls: Callable[..., R], path: Path, parts: Mapping[str, Any]) -> R:
    """A runner with the configuration of a checkpoint, that has taken its state."""
    from danling.config.config import Config

    checkpoint = read_checkpoint(path, whole=False)
    saved = checkpoint["config"]
    own = {key: saved[key] for key in saved if key not in (*STATE_KEYS, "resume")}
    config = parts.get("config") or Config(own)
    runner = cls(config, **{name: part for name, part in parts.items() if name != "config"})
    restore(runner, checkpoint, path)
    return runner


def restore_rng(runner: AccelerateRunner) -> None:
    """Put the random streams back, once, right before the first batch after a resume."""
    state, runner.pending_rng = runner.pending_rng, None
    if state is None:
        return
    report = runner.resume_report
    if (problems := set_rng_state(state)) and report is not None:
        runner.resume_report = report | {"exact": False, "reasons": report["reasons"] + problems}
        runner.logger.warning("the random streams are not exactly restored: %s", problems)


def compare(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path, strict: bool
) -> list[str]:
    """Why the continuation will not be exact, all of which was asked for or cannot be helped.

    Raises:
        CheckpointError: The checkpoint does not fit.
        ResumeError: It does, but the continuation would not be the one that was asked for.
    """
    check_complete(checkpoint, path)
    left_out = check_parts(runner, checkpoint, path, strict=strict)
    adopt_drawn_seed(runner, checkpoint["config"])
    try:
        doubts = restore_loaders(runner, checkpoint["data"])
    except ResumeError as error:
        runner.forget_loaders()
        if strict:
            raise
        doubts = [str(error)]
    found = obstacles(runner, checkpoint["run"], checkpoint["data"]["epoch"])
    if found and strict and not runner.config.elastic:
        runner.forget_loaders()
        raise ResumeError(
            f"{path} cannot be continued exactly: {'; '.join(found)}. The ways out: put the old "
            "values back; or pass elastic=True to go on with the new ones, not bit for bit as "
            "before; or take what fits with load_checkpoint(path, strict=False)"
        )
    then = checkpoint["run"].get("surroundings", {})
    now = surroundings(runner)
    other = [
        f"{key} {then[key]} -> {now[key]}" for key in now if then.get(key, now[key]) != now[key]
    ]
    return left_out + found + doubts + other
