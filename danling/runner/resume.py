"""A run goes on from one of its checkpoints: which one, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from danling.checkpoint.reading import read_together
from danling.checkpoint.store import CheckpointStore
from danling.distributed.world import World
from danling.errors import CheckpointError, ResumeError

__all__ = ["find_checkpoint", "report", "warn_of_newer"]


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


def report(logger: logging.Logger, told: Mapping[str, Any], path: Path) -> None:
    """Log where the run goes on, how exactly, and what is other than it was."""
    for change in told["changes"]:
        logger.info("%s", change)
    logger.log(
        logging.WARNING if told["reasons"] else logging.INFO,
        "resumed from %s at epoch %d, global step %d: %s",
        path,
        told["epoch"],
        told["global_step"],
        f"not exactly, since {'; '.join(told['reasons'])}" if told["reasons"] else "exactly",
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
