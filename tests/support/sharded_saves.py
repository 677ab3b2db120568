"""Saves with shards of any content: what a store does with them needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from danling.checkpoint.sharded.shards import Manifest, directories, finish, seal
from danling.checkpoint.store import CheckpointStore

FILES = {".metadata": b"an index", "__0_0.distcp": b"one shard", "__1_0.distcp": b"another one"}


def write_shards(
    store: CheckpointStore, step: int, files: Mapping[str, bytes] = FILES
) -> tuple[Path, Manifest]:
    """Writes shards as two processes would; returns their directory, and what the head says."""
    directory = store.new_shards(step)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    own = [name for name in files if not name.startswith("__1")]
    others = [name for name in files if name not in own]
    return directory, finish(directory, [seal(directory, own), seal(directory, others)])


def save_sharded(store: CheckpointStore, step: int, *names: str) -> Path:
    """Commits a checkpoint with shards; returns their directory."""
    directory, manifest = write_shards(store, step)
    commit_sharded(store, step, manifest, *names)
    return directory


def commit_sharded(store: CheckpointStore, step: int, manifest: Manifest, *names: str) -> Path:
    """Commits the head of shards that are there; returns the head."""
    return store.commit(
        {"model": {"step": torch.tensor(step)}},
        names or ("latest",),
        global_step=step,
        epoch=step // 10,
        shards=manifest,
    )


def there(store: CheckpointStore) -> set[str]:
    """The directories of shards that are there."""
    return directories(store.directory)
