"""Batches on their way to the device, copied while the device still works on the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

__all__ = ["move", "transferred"]


def transferred(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """The batches, moved to the device.

    On the CPU they pass as they are. On CUDA the next batch is read and its copy started, on a
    stream of its own, before a batch is handed out; that overlaps when the batches are pinned.

    Example:
        >>> batches = iter([torch.zeros(2)])
        >>> transferred(batches, torch.device("cpu")) is batches
        True
    """
    if device.type == "cpu":
        return batches
    if device.type == "cuda":
        return _ahead(batches, device)
    return (move(batch, device) for batch in batches)


def move(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in it on the device; copies from pinned memory do not wait.

    Example:
        >>> move({"input": torch.zeros(2), "id": "a"}, torch.device("meta"))
        {'input': tensor(..., device='meta', size=(2,)), 'id': 'a'}
    """
    kind = type(batch)
    if kind is Tensor:
        return batch.to(device, non_blocking=True)
    if kind is tuple or kind is list:
        return kind([move(part, device) for part in batch])
    if kind is dict:
        return {name: move(part, device) for name, part in batch.items()}
    if kind in (str, int, float, bool, bytes, type(None)):
        return batch
    return send_to_device(batch, device, non_blocking=True)


def _ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
    waiting: list[tuple[Any, torch.cuda.Event]] = []
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = move(batch, device)
            waiting.append((moved, stream.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0), device)
    for moved, copied in waiting:
        yield _arrived(moved, copied, device)


def _arrived(batch: Any, copied: torch.cuda.Event, device: torch.device) -> Any:
    """The batch, once the stream that will use it waits for its copy."""
    consumer = torch.cuda.current_stream(device)
    consumer.wait_event(copied)
    _in_use(batch, consumer)
    return batch


def _in_use(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keep the memory of a batch from being given out again while the consumer's stream uses it."""
    if isinstance(batch, Tensor):
        if batch.is_cuda:
            batch.record_stream(stream)
    elif isinstance(batch, list | tuple):
        for part in batch:
            _in_use(part, stream)
    elif hasattr(batch, "values") and callable(batch.values):
        for part in batch.values():
            _in_use(part, stream)
