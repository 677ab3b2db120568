"""Tensors of which each process writes and reads its part: `torch.distributed.checkpoint`.

A checkpoint is split in two: the tensors that are distributed over processes (`DTensor`), and the
head, which has a `Placeholder` for each of them. The import of this module takes half a second, and
is made where there are shards.
"""

from __future__ import annotations

import errno
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from danling.checkpoint.digest import HashedFile
from danling.checkpoint.encoding import Placeholder
from danling.checkpoint.sharded.shards import NOT_WRITTEN, Written, failure
from danling.distributed.world import World
from danling.errors import CheckpointError, DistributedError
from danling.files import filesystem

__all__ = ["SPLIT", "Place", "Tensors", "read", "split"]


Place = tuple[Any, ...]
"""Keys that lead to a tensor: `("optimizer", "state", 0, "exp_avg")`."""

SPLIT = ("model", "optimizer")
"""The parts of a checkpoint that may have tensors elsewhere."""

_AHEAD = 10_000_000  # bytes on their way from a GPU while others are written: torch's default
_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_METADATA, "Metadata"), (_METADATA, "MetadataIndex"), (_METADATA, "StorageMeta")),
    (_METADATA, "ChunkStorageMetadata"),
    *((_METADATA, "TensorProperties"), (_METADATA, "TensorStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
}
"""The types in an index of tensors; torch would unpickle any others, whatever they are."""


class Tensors(dict[Place, Tensor]):
    """The tensors of a checkpoint that are distributed over processes, by their places."""

    can_wait = True

    def copied(self) -> Tensors:
        """The parts that this process has, in memory of the host that nobody changes."""
        return Tensors(
            {place: tensor.detach().to("cpu", copy=True) for place, tensor in self.items()}
        )

    def write(self, directory: Path, world: World) -> Written:
        """Write the parts that this process has; a collective of the world.

        What is written is not durable yet.

        Returns:
            The files of this process.

        Raises:
            CheckpointError: A process could not write its files: it is raised on all of them.
            DistributedError: One of the processes is gone.
        """
        named = {_name(place): tensor for place, tensor in self.items()}
        ahead = 0 if all(tensor.device.type == "cpu" for tensor in self.values()) else _AHEAD
        writer = _Writer(directory, sync_files=False, per_thread_copy_ahead=ahead)
        files = writer.fs = _Files({_memory(tensor) for tensor in self.values()})
        _together(
            lambda group: save(
                named, storage_writer=writer, process_group=group, no_dist=group is None
            ),
            NOT_WRITTEN,
            directory,
            world,
        )
        return files.written


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """The head of a checkpoint, and the tensors that are distributed over processes.

    Example:
        >>> split({"model": {"scale": 2.0}, "config": {"seed": 1}})
        ({'model': {'scale': 2.0}, 'config': {'seed': 1}}, {})
    """
    found = Tensors(_tensors(checkpoint, lambda tensor: isinstance(tensor, DTensor)))
    places = {place: Placeholder(tensor.shape, tensor.dtype) for place, tensor in found.items()}
    return _replaced(checkpoint, places), found


def read(
    checkpoint: Mapping[str, Any],
    directory: Path,
    like: Callable[[Place], Tensor | None] = lambda place: None,
    world: World | None = None,
    parts: Sequence[str] = SPLIT,
) -> dict[str, Any]:
    """A checkpoint with its tensors in place; a collective of the world, if there is one.

    Args:
        checkpoint: The head.
        directory: The directory of its shards.
        like: Gives the `DTensor` that a tensor is for, if it is for one: then only the part of
            this process is read.
        world: The processes that read together; None: this one reads alone.
        parts: The parts of the checkpoint to read; the others stay where they are.

    Raises:
        CheckpointError: A shard cannot be read; it is raised on all processes.
        DistributedError: One of the processes is gone.
    """
    found = dict(_tensors(checkpoint, lambda tensor: tensor.is_meta, parts))
    targets = {place: _empty(tensor, like(place)) for place, tensor in found.items()}
    named = {_name(place): tensor for place, tensor in targets.items()}
    reader = _Reader(directory)
    try:
        _together(
            lambda group: load(
                named, storage_reader=reader, process_group=group, no_dist=group is None
            ),
            "the shards of a checkpoint cannot be read",
            directory,
            world or World(),
        )
    except CheckpointError as error:
        if error.errno is None and not (directory / ".metadata").exists():  # torch says it in words
            error.errno = errno.ENOENT
        raise
    return _replaced(checkpoint, targets)


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Leave out the path of the directory: it may be moved."""


class _Files(FileSystem):
    """The files of torch's writer, hashed while they are written."""

    def __init__(self, lasting: Collection[int]) -> None:
        self.written = Written()
        self._lasting = lasting

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        descriptor = filesystem.open_new(Path(path))
        try:
            with closing(HashedFile(descriptor, self._lasting)) as file:
                with _own_error(file):
                    yield file
                self.written[Path(path).name] = file.finish()
        finally:
            filesystem.close(descriptor)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


@contextmanager
def _own_error(file: HashedFile) -> Iterator[None]:
    """Raise what the system said of a file, where torch says "unexpected pos" and no errno."""
    try:
        yield
    except RuntimeError:
        if file.error is None:
            raise
        raise file.error from None


def _memory(tensor: Tensor) -> int:
    """The address of the memory of this process's part of a tensor."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().data_ptr()


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
    checkpoint: Mapping[str, Any], wanted: Callable[[Tensor], bool], parts: Sequence[str] = SPLIT
) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of a checkpoint that may be elsewhere, with their places."""
    pending: list[tuple[Place, Any]] = [((key,), checkpoint.get(key)) for key in parts]
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


def _together(work: Callable[[Any], object], what: str, directory: Path, world: World) -> None:
    """Do something in a group, with one error of ours for all that torch raises on any process.

    Torch's own is left behind: its traceback has the group, which nobody else may keep.
    """
    raised: BaseException | None = None
    try:
        with _silenced() if world.group is None else nullcontext():
            work(world.group)
    except CheckpointException as error:  # no Exception, and with the errors of all processes
        raised = _of_all(error, what, directory, world.rank)
    except RuntimeError as error:
        raised = DistributedError(f"{what}, since another process has gone: {error}")
    if raised is not None:
        raise raised


def _of_all(error: CheckpointException, what: str, directory: Path, own_rank: int) -> BaseException:
    causes = {rank: cause for rank, (cause, _) in error.failures.items()}
    own = causes.get(own_rank)
    if own is not None and not isinstance(own, Exception):  # Ctrl-C
        return own.with_traceback(None)
    rank = min(causes)
    raised = failure(what, directory, causes[rank])
    raised.add_note(f"raised on rank {rank}")
    raised.__dict__["failed_rank"] = rank  # its traceback is printed first
    return raised


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence torch's warning that one process works alone; filters are of the whole process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
