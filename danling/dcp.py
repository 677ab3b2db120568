"""Tensors of which each process writes and reads its part: `torch.distributed.checkpoint`.

A checkpoint is split in two: the tensors that are distributed over processes (`DTensor`), and the
head, which has `Elsewhere` in their place. The import takes half a second, and is made where there
are shards.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from danling.encoding import Elsewhere
from danling.errors import CheckpointError

__all__ = ["Place", "copied", "read", "split", "write"]

Place = tuple[Any, ...]
"""Keys that lead to a tensor: `("optimizer", "state", 0, "exp_avg")`."""

SPLIT = ("model", "optimizer")
"""The parts of a checkpoint that may have tensors elsewhere."""

_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_METADATA, "BytesStorageMetadata"), (_METADATA, "ChunkStorageMetadata")),
    *((_METADATA, "Metadata"), (_METADATA, "MetadataIndex"), (_METADATA, "StorageMeta")),
    *((_METADATA, "TensorProperties"), (_METADATA, "TensorStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
}
"""What an index is made of."""


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Place, Tensor]]:
    """The head of a checkpoint, and the tensors that are distributed over processes.

    Example:
        >>> split({"model": {"scale": 2.0}, "config": {"seed": 1}})
        ({'model': {'scale': 2.0}, 'config': {'seed': 1}}, {})
    """
    found = dict(_tensors(checkpoint, lambda tensor: isinstance(tensor, DTensor)))
    places = {place: Elsewhere(tensor.shape, tensor.dtype) for place, tensor in found.items()}
    return _replaced(checkpoint, places), found


def copied(tensors: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """The parts that this process has, in memory of the host that nobody changes."""
    return {place: tensor.detach().to("cpu", copy=True) for place, tensor in tensors.items()}


def write(directory: Path, tensors: Mapping[Place, Tensor], group: Any) -> None:
    """Write the parts that this process has; a collective of the group, if there is one.

    Raises:
        CheckpointError: Any of the processes could not: it is raised on all of them.
    """
    named = {_name(place): tensor for place, tensor in tensors.items()}
    with _translated("the shards of a checkpoint were not written", directory):
        writer = _Writer(directory)
        save(named, storage_writer=writer, process_group=group, no_dist=group is None)


def read(
    checkpoint: Mapping[str, Any],
    directory: Path,
    like: Callable[[Place], Tensor | None] = lambda place: None,
    group: Any = None,
) -> dict[str, Any]:
    """A checkpoint with its tensors in place; a collective of the group, if there is one.

    Args:
        checkpoint: The head.
        directory: Of its shards.
        like: Gives the `DTensor` that a tensor is for, if it is for one: then only the part of
            this process is read.
        group: Of the processes that read together; None: this one reads alone.

    Raises:
        CheckpointError: It cannot be read; it is raised on all processes.
    """
    found = dict(_tensors(checkpoint, lambda tensor: tensor.is_meta))
    targets = {place: _empty(tensor, like(place)) for place, tensor in found.items()}
    named = {_name(place): tensor for place, tensor in targets.items()}
    try:
        with _translated("the shards of a checkpoint cannot be read", directory):
            reader = _Reader(directory)
            load(named, storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointError as error:
        if error.errno is None and not (directory / ".metadata").exists():  # torch says it in words
            error.errno = errno.ENOENT
        raise
    return _replaced(checkpoint, targets)


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Leave out the path of the directory: it may be moved."""


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **options: Any) -> Any:  # of "kwargs" torch makes more
        """Read the index; torch takes any pickle for it, which could run any code."""
        with open(Path(self.path) / ".metadata", "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Makes what is in an index of torch's, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" else None
        if (module, name) in _INDEX or isinstance(dtype, torch.dtype):
            return super().find_class(module, name)
        raise CheckpointError(f"the index of its shards names {module}.{name}: it is not torch's")


def _empty(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Memory for a tensor on the CPU, or for this process's part of it where that one is."""
    if like is None or like.shape != tensor.shape:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False)


def _name(place: Place) -> str:
    """One name of each place: keys may have slashes, and 0 is not "0"."""
    return "/".join(_escaped(key) if isinstance(key, str) else str(key) for key in place)


def _escaped(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace("/", "\\/")
    return f"\\{escaped}" if key.lstrip("-").isdecimal() else escaped


def _tensors(
    checkpoint: Mapping[str, Any], wanted: Callable[[Tensor], bool]
) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of a checkpoint that may be elsewhere, with their places."""
    pending: list[tuple[Place, Any]] = [((key,), checkpoint.get(key)) for key in SPLIT]
    while pending:
        place, value = pending.pop()
        if isinstance(value, Tensor):
            if wanted(value):
                yield place, value
        elif isinstance(value, Mapping):
            pending += (((*place, key), item) for key, item in value.items())


def _replaced(checkpoint: Mapping[str, Any], changes: Mapping[Place, Any]) -> dict[str, Any]:
    """A copy of a checkpoint with other values at some places."""
    copied: dict[Place, dict[Any, Any]] = {(): dict(checkpoint)}
    for place, value in changes.items():
        for depth in range(1, len(place)):
            outer, key = copied[place[: depth - 1]], place[depth - 1]
            if place[:depth] not in copied:
                copied[place[:depth]] = outer[key] = dict(outer[key])
        copied[place[:-1]][place[-1]] = value
    return copied[()]


@contextmanager
def _translated(what: str, directory: Path) -> Iterator[None]:
    """One error of ours for all that torch raises, the same on every process."""
    try:
        with warnings.catch_warnings():  # that it works on one process
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:  # no Exception, and with the errors of all processes
        rank, (cause, _) = min(error.failures.items())
        number, reason = getattr(cause, "errno", None), getattr(cause, "strerror", None)
        failure = CheckpointError(number, f"{what}: {reason or cause}", str(directory))
        failure.add_note(f"raised on rank {rank}")
        failure.__dict__["failed_rank"] = rank  # its traceback is printed first
        raise failure from None
    except RuntimeError as error:  # another process has gone
        raise CheckpointError(None, f"{what}: {error}", str(directory)) from None
