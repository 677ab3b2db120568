"""A checkpoint that stays what it was while training goes on.

Weights are updated in place: what is written in the background must be copied first, or one file
mixes the layers of several steps. Each block of memory is copied once, so that tied weights stay
tied and a snapshot is no larger than what it was made from.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from danling.encoding import encode

__all__ = ["Snapshot", "on_host", "snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """An encoded checkpoint in host memory that shares nothing with what it was made from.

    Attributes:
        payload: What `danling.encoding.encode` returned, copied.
    """

    payload: Any


def snapshot(checkpoint: Mapping[str, Any]) -> Snapshot:
    """Copies a checkpoint to host memory, for `CheckpointStore.commit` in a background thread.

    Tensors on a GPU go through pinned memory, and all copies are complete when this returns.

    Raises:
        CheckpointError: Something in it cannot be saved; the message has its path.

    Example:
        >>> weight = torch.zeros(2)
        >>> copied = snapshot({"model": {"weight": weight}})
        >>> _ = weight.fill_(1)
        >>> copied.payload["model"]["weight"]
        tensor([0., 0.])
    """
    return Snapshot(_Copier(everything=True).copied(encode(dict(checkpoint))))


def on_host(payload: Any) -> Any:
    """An encoded checkpoint with its tensors in host memory; those that are there are not copied.

    A file written from it can be read on a machine without the device, by a plain `torch.load`.
    """
    return _Copier(everything=False).copied(payload)


class _Copier:
    """Copies one tree; tensors that share memory share the copy of it."""

    def __init__(self, everything: bool) -> None:
        self._everything = everything
        self._storages: dict[tuple[torch.device, int, int], torch.UntypedStorage] = {}
        self._tensors: dict[int, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def copied(self, payload: Any) -> Any:
        with torch.no_grad():
            result = self._value(payload)
        for device in self._devices:  # the copies, not the training step, must be complete
            torch.cuda.current_stream(device).synchronize()
        return result

    def _value(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            kept = value.is_meta or (not self._everything and _in_host_memory(value))
            return value if kept else self._tensor(value)
        if isinstance(value, (dict, OrderedDict, Counter)):
            return self._mapping(value)
        if type(value) in (list, tuple):
            items = [self._value(item) for item in value]
            return items if type(value) is list else tuple(items)
        if self._everything and isinstance(value, (set, bytearray)):
            return value.copy()
        return value

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copied = value.copy()
        if hasattr(value, "__dict__"):  # `_metadata` of a state dict
            vars(copied).update({key: self._value(item) for key, item in vars(value).items()})
        for key, item in value.items():
            copied[key] = self._value(item)
        return copied

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        known = self._tensors.get(id(tensor))
        if known is None:
            known = self._tensors[id(tensor)] = self._copy_tensor(tensor)
        return known

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.detach().clone().cpu()
        storage = self._storage(tensor.untyped_storage())
        copied = torch.empty(0, dtype=tensor.dtype).set_(
            storage, tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self._storages:
            self._storages[key] = self._copy_storage(storage)
        return self._storages[key]

    def _copy_storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        if storage.device.type != "cuda":
            return source.to("cpu", copy=True).untyped_storage()
        self._devices.add(storage.device)
        target = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True)
        return target.copy_(source, non_blocking=True).untyped_storage()


def _in_host_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"
