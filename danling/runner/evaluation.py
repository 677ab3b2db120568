"""Evaluation and prediction: no gradients, nothing drawn from training's randomness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danling.seed import isolated_rng

__all__ = ["evaluation_mode", "joined", "to_host"]


@contextmanager
def evaluation_mode(model: nn.Module | None, *others: Any, partial: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients; random streams and modes of modules are put back.

    Args:
        model: The model.
        *others: Modules besides it, as the criterion; what is no module is left out.
        partial: Whether a process holds only a part of it.
    """
    wholes = [module for module in (model, *others) if isinstance(module, nn.Module)]
    modes = [[(part, part.training) for part in module.modules()] for module in wholes]
    with isolated_rng(), torch.no_grad(), without_collectives(model, partial):
        for module in wholes:
            module.eval()
        try:
            yield
        finally:
            for own in modes:
                put_modes_back(own)


def put_modes_back(modes: list[tuple[nn.Module, bool]]) -> None:
    """Let the parts of a module be in the modes that they were in, the whole of it first."""
    whole, mode = modes[0]
    whole.train(mode)  # what a module does besides, as merging its adapters
    for part, mode in modes:
        part.training = mode


@contextmanager
def without_collectives(model: Any, partial: bool) -> Iterator[None]:
    """Let each process evaluate as many batches as it has: buffers are those of rank 0 until then.

    The forward of a `DistributedDataParallel` broadcasts them, and waits for all processes.
    """
    if partial:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    parts = model.modules() if isinstance(model, nn.Module) else ()
    wrappers = [part for part in parts if isinstance(part, DistributedDataParallel)]
    before = [wrapper.require_forward_param_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_forward_param_sync = False
        for buffer in wrapper.modules_buffers if wrapper.broadcast_buffers else ():
            dist.broadcast(buffer, group=wrapper.process_group, group_src=0)
    try:
        yield
    finally:
        for wrapper, synchronises in zip(wrappers, before, strict=True):
            wrapper.require_forward_param_sync = synchronises


def joined(parts: list[list[tuple[int, Any]]]) -> Any:
    """The outputs of all processes in the order of the samples.

    Args:
        parts: The outputs of each process, each with the position of its first sample.

    Returns:
        One tensor where the outputs are tensors, else the list of the outputs of all batches.
    """
    pairs = [pair for part in parts for pair in part]
    ordered = [output for _, output in sorted(pairs, key=itemgetter(0))]
    return torch.cat(ordered) if are_alike(ordered) else ordered


def are_alike(outputs: list[Any]) -> bool:
    """Whether outputs are tensors that differ in their number of samples alone."""
    if not outputs or not all(isinstance(output, Tensor) and output.ndim for output in outputs):
        return False
    return len({output.shape[1:] for output in outputs}) == 1


def to_host(output: Any) -> Any:
    """Copy the tensors of an output to the CPU."""
    if isinstance(output, Tensor):
        return output.detach().cpu()
    if isinstance(output, Mapping):
        return {key: to_host(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [to_host(value) for value in output]
    return output
