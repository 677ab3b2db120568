"""A run goes on from one of its checkpoints: which one, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danling.checkpoint.reading import read_together
from danling.errors import CheckpointError, ResumeError
from danling.optimization.hyperparameters import given_to
from danling.runner.state import restore

if TYPE_CHECKING:
    from danling.checkpoint.store import CheckpointStore
    from danling.runner.accelerate import AccelerateRunner

__all__ = ["resume"]


def resume(runner: AccelerateRunner) -> None:
    """Load the checkpoint that the run goes on from, if there is one; what `_open` calls."""
    which, message = runner.resumption()
    if message:
        runner.logger.info("%s", message)
    given_to(runner)
    if which is None:
        return
    store = runner.checkpoints
    for line in runner.world.on_main(store.clean):
        runner.logger.warning("checkpoints: %s", line)
    if which == "latest" and runner.world.on_main(store.is_empty):
        runner.world.on_main(lambda: check_elsewhere(runner))
        runner.logger.info("it has no checkpoint yet: training starts from its beginning")
        return
    checkpoint, path = read_together(runner.world, lambda: choose(store, which))
    check_own(runner, checkpoint, path)
    restore(runner, checkpoint, path)
    report(runner, path)
    newest = runner.world.on_main(lambda: max(e.global_step for e in store.candidates()))
    if newest > runner.global_step:
        runner.logger.warning(
            "the run goes back from global step %d to %d: newer checkpoints stay until training "
            "writes new ones of their names",
            newest,
            runner.global_step,
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
    """Whether a run can go on exactly from it: it holds all, of a safe point."""
    return "data" in checkpoint and checkpoint["run"].get("unsafe") is None


def check_elsewhere(runner: AccelerateRunner) -> None:
    """Refuse to start afresh where the checkpoints are in a folder of another name."""
    for found in sorted(runner.dir.glob("*/latest.pth")):
        if found.parent != runner.checkpoint_dir:
            raise ResumeError(
                f"there is no checkpoint in {runner.checkpoint_dir}, but there is {found}: set "
                f"checkpoint_dir_name={found.parent.name!r}"
            )


def check_own(runner: AccelerateRunner, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on in this directory from a checkpoint of another run."""
    found = checkpoint.get("run", {}).get("uuid")
    if found is not None and found != str(runner.uuid):
        raise ResumeError(
            f"{path} belongs to the run {found}, and lies in the directory of {runner.uuid}: to "
            "start a new run from it, use AccelerateRunner.from_checkpoint"
        )


def report(runner: AccelerateRunner, path: Path) -> None:
    """Log where the run goes on, how exactly, and what is other than it was."""
    told = runner.resume_report or {}
    for change in told["changes"]:
        runner.logger.info("%s", change)
    runner.logger.log(
        logging.WARNING if told["reasons"] else logging.INFO,
        "resumed from %s at epoch %d, global step %d: %s",
        path,
        runner.epoch,
        runner.global_step,
        f"not exactly, since {'; '.join(told['reasons'])}" if told["reasons"] else "exactly",
    )
