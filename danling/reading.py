"""A checkpoint on several processes: one chooses and checks it, all get the same content."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from danling.distributed import World
from danling.errors import CheckpointError
from danling.validation import read_checkpoint, trailer_of

__all__ = ["read_together"]

SENT = 1 << 26
"""Bytes of a file up to which its content is sent to the other processes."""

Chosen = tuple[dict[str, Any], Path]


def read_together(world: World, choose: Callable[[], Chosen]) -> Chosen:
    """Let the main process choose a file, check and read it, and give all the same content.

    What is in shards is checked, and not read.

    A large file is not sent: each process reads it by itself, unless one of them cannot see it, or
    sees another, as it happens on shared file systems.

    Args:
        world: The processes; each must call this.
        choose: Gives a checkpoint and its file; called on the main process only.

    Raises:
        CheckpointError: What `choose` raises, on every process.

    Example:
        >>> from danling.checkpoint import CheckpointStore
        >>> store = CheckpointStore(getfixture("tmp_path") / "checkpoints")
        >>> _ = store.commit({"model": {}}, ["latest"], global_step=3, epoch=1)
        >>> checkpoint, path = read_together(World(), store.load)
        >>> path.name, checkpoint["model"]
        ('latest.pth', {})
    """
    chosen: list[Chosen] = []

    def describe() -> tuple[Path, str | None, bool]:
        chosen.append(choose())
        path = chosen[0][1]
        return path, digest_of(path), path.stat().st_size <= SENT

    path, digest, is_small = world.on_main(describe)
    if not chosen and not is_small:
        with suppress(CheckpointError):
            if digest == digest_of(path):
                chosen.append((read_checkpoint(path, whole=False), path))
    if is_small or world.maximum([not chosen])[0]:
        content: Chosen = world.broadcast(chosen[0] if chosen else ({}, path))
        return content
    return chosen[0]


def digest_of(path: Path) -> str | None:
    """Of the content of a file, as it says itself."""
    trailer = trailer_of(path)
    return None if trailer is None else trailer.sha256
