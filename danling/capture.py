"""What is in a checkpoint, and how a runner takes it back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from danling.distributed import World
from danling.errors import CheckpointError, ResumeError
from danling.jsonable import to_plain
from danling.seed import derive, rng_state, seed_everything, set_rng_state
from danling.settings import STATE_KEYS
from danling.triggers import Moment
from danling.validation import read_checkpoint, trailer_of

if TYPE_CHECKING:
    from danling.runner import AccelerateRunner

__all__ = ["build", "load", "restore", "save", "take"]

_SENT = 1 << 26  # bytes of a checkpoint up to which it is sent to the other processes


def take(runner: AccelerateRunner) -> dict[str, Any]:
    """Everything that the run needs to go on from here; a collective."""
    counters = runner.counters
    return {
        "model": model_state(runner),
        **runner.optimization.state_dict(),
        "config": to_plain(runner.config.resolved() | runner.config.to_dict(state=True)),
        "results": runner.results,
        "callbacks": {callback.name: callback.state_dict() for callback in runner.callbacks}
        | runner.foreign_state,
        "data": {
            **asdict(counters),
            "loaders": runner.world.gather(runner.loader_states()),
            "open": runner.world.gather(runner.loop_state()),
            "last_evaluation": asdict(runner.last_evaluation),
        },
        "rng": runner.world.gather(rng_state()),
        "run": {
            "uuid": str(runner.uuid),
            "world_size": runner.world_size,
            "accum_steps": runner.accum_steps,
            "seconds": runner.clock.seconds,
            "stop_reason": runner.stop_reason,
            "versions": {name: version(name) for name in ("torch", "accelerate")},
        },
    }


def save(runner: AccelerateRunner, names: Sequence[str]) -> Path:
    """Commit what `take` gives on the main process, and tell the callbacks."""
    checkpoint = take(runner)
    path = runner.checkpoints.directory / f"{names[0]}.pth"
    counters = runner.counters

    def commit() -> None:
        runner.checkpoints.commit(
            checkpoint,
            names,
            global_step=counters.global_step,
            epoch=counters.epoch,
            metrics=runner.score_metrics(),
        )

    runner.world.on_main(commit)
    runner.callbacks("on_save", runner, path)
    return path


def load(runner: AccelerateRunner, path: Path, *, strict: bool = True) -> None:
    """Read a checkpoint file for every process, and take it."""
    checkpoint, path = read_together(runner.world, lambda: (read_checkpoint(path), path))
    restore(runner, checkpoint, path, strict=strict)


def read_together(
    world: World, choose: Callable[[], tuple[dict[str, Any], Path]]
) -> tuple[dict[str, Any], Path]:
    """Let the main process choose a file, check and read it, and give all the same content.

    A large file is not sent: each process reads it by itself, unless one of them cannot see it, or
    sees another, as it happens on shared file systems.
    """
    chosen: list[tuple[dict[str, Any], Path]] = []

    def describe() -> tuple[Path, str | None, bool]:
        chosen.append(choose())
        path = chosen[0][1]
        return path, digest_of(path), path.stat().st_size < _SENT

    path, digest, is_small = world.on_main(describe)
    if not chosen and not is_small:
        with suppress(CheckpointError):
            if digest == digest_of(path):
                chosen.append((read_checkpoint(path), path))
    if is_small or world.maximum([not chosen])[0]:
        return world.broadcast(chosen[0] if chosen else None)  # type: ignore[return-value]  # rank 0 has one
    return chosen[0]


def digest_of(path: Path) -> str | None:
    """Of the content of a file, as it says itself."""
    trailer = trailer_of(path)
    return None if trailer is None else trailer.sha256


def restore(
    runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path, *, strict: bool = True
) -> None:
    """Take a checkpoint: everything is compared before anything is changed."""
    runner.prepare()
    data, run = checkpoint["data"], checkpoint["run"]

    def compare() -> list[str]:
        adopt_drawn_seed(runner, checkpoint["config"])
        check_model(runner.unwrapped_model, checkpoint["model"], path)
        reasons = check_run(runner, run) + restore_loaders(runner, data)
        if reasons and strict and not runner.config.elastic:
            raise ResumeError(f"{path} cannot be continued exactly: {'; '.join(reasons)}")
        return reasons

    reasons = runner.world.together(compare)
    if runner.model is not None:
        runner.unwrapped_model.load_state_dict(checkpoint["model"])
    runner.optimization.load_state_dict(checkpoint)
    for name in ("epoch", "global_step", "batch_index"):
        setattr(runner.counters, name, data[name])
    runner.history.restore(checkpoint["results"])
    runner.clock.before = run["seconds"]
    runner.last_evaluation = Moment(**data["last_evaluation"])
    restore_own(runner, data["open"], checkpoint["rng"])
    restore_callbacks(runner, checkpoint["callbacks"])
    runner.resume_report = {"exact": not reasons, "reasons": reasons, "checkpoint": path.name}
    runner.callbacks("on_load", runner, checkpoint)


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
    return reasons


def restore_callbacks(runner: AccelerateRunner, states: Mapping[str, dict[str, Any]]) -> None:
    """Give each callback its state by name, and report in one line which came and went."""
    names = {callback.name for callback in runner.callbacks}
    for callback in runner.callbacks:
        if callback.name in states:
            callback.load_state_dict(states[callback.name])
    runner.foreign_state = {name: state for name, state in states.items() if name not in names}
    added = sorted(names - states.keys())
    removed = sorted(name for name, state in runner.foreign_state.items() if state)
    if added or removed:
        lists = (
            f"{word}: {', '.join(found)}"
            for word, found in (("new", added), ("gone", removed))
            if found
        )
        runner.logger.warning(
            "the callbacks differ from those of the checkpoint (%s)", "; ".join(lists)
        )


def check_run(runner: AccelerateRunner, run: Mapping[str, Any]) -> list[str]:
    """What of the run itself makes an exact continuation impossible."""
    reasons = []
    for name, now in (("world_size", runner.world_size), ("accum_steps", runner.accum_steps)):
        if run[name] != now:
            reasons.append(f"{name} was {run[name]}, now it is {now}")
    return reasons


def check_model(model: nn.Module | None, state: Mapping[str, Any] | None, path: Path) -> None:
    """Compare names and shapes of the weights before any is changed."""
    if model is None or state is None:
        return
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    for name, tensor in own.items():
        if name in state and getattr(tensor, "shape", None) != getattr(state[name], "shape", None):
            problems.append(
                f"{name} has shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}"
            )
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(f"{path} does not fit the model: {shown}")


def model_state(runner: AccelerateRunner) -> Any:
    """The weights under the names of the plain model."""
    if runner.model is None:
        return None
    if runner.optimization.direct:
        return runner.unwrapped_model.state_dict()
    return runner.unwrapped_model.state_dict()


def load_model(runner: AccelerateRunner, state: Any) -> None:
    """Load the weights."""
    if runner.model is not None:
        runner.unwrapped_model.load_state_dict(state)


def build(cls: Callable[..., Any], path: Path, parts: Mapping[str, Any]) -> Any:
    """A runner with the configuration of a checkpoint, that has taken its state."""
    from danling.config import Config

    checkpoint = read_checkpoint(path)
    saved = checkpoint["config"]
    config = parts.get("config") or Config({k: saved[k] for k in saved if k not in STATE_KEYS})
    runner = cls(config, **{name: part for name, part in parts.items() if name != "config"})
    restore(runner, checkpoint, path)
    return runner


def restore_rng(runner: AccelerateRunner) -> None:
    """Put the random streams back, once, right before the first batch after a resume."""
    state, runner.pending_rng = runner.pending_rng, None
    if state is not None:
        set_rng_state(state)


def resume(runner: AccelerateRunner) -> None:
    """Load the checkpoint that the run goes on from, if there is one; what `_open` calls."""
    which, message = runner.resumption()
    if message:
        runner.logger.info("%s", message)
    if which is None:
        return
    for line in runner.world.on_main(runner.checkpoints.clean):
        runner.logger.warning("checkpoints: %s", line)
    if which == "latest" and runner.world.on_main(runner.checkpoints.is_empty):
        runner.logger.info("it has no checkpoint yet: training starts from its beginning")
        return
    checkpoint, path = read_together(runner.world, lambda: runner.checkpoints.load(which))
    restore(runner, checkpoint, path)
    report_differences(runner, checkpoint["config"])
    reasons = (runner.resume_report or {}).get("reasons")
    runner.logger.log(
        logging.WARNING if reasons else logging.INFO,
        "resumed from %s at epoch %d, global step %d: %s",
        path,
        runner.epoch,
        runner.global_step,
        f"not exactly, since {'; '.join(reasons)}" if reasons else "exactly",
    )


def report_differences(runner: AccelerateRunner, saved: Mapping[str, Any]) -> None:
    """Log what the configuration now says otherwise: it wins."""
    own = type(runner.config)({key: saved[key] for key in saved if key not in STATE_KEYS})
    for key, (new, old) in runner.config.diff(own).items():
        if key != "resume":
            runner.logger.info("config: %s was %r, now it is %r", key, old, new)
