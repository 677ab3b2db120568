"""Processes that each have the whole of what is trained, and keep it equal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danling.distributed.stand_in import StandIn
from danling.errors import RunError
from danling.optimization.models import Models, parts_of

__all__ = ["Replicas"]


class Replicas:
    """Averages the gradients that no wrapper averages, and shares the buffers that none shares.

    Attributes:
        apart: Modules besides the model, which the processes keep equal at each step.
        stand_in: The object that takes part in the wrapper's work for a batch that it skips.
    """

    def __init__(self) -> None:
        self.apart: list[nn.Module] = []
        self.stand_in: StandIn | None = None
        self._several: list[nn.Module] = []  # models of which nobody else shares the buffers
        self._averaged: set[int] | None = None  # parameters that wrappers average
        self._uncalled: list[nn.Module] = []  # wrappers of which no forward has been seen yet

    def watch(self, model: Any) -> None:
        """Remember which gradients are averaged by wrappers, and whether those are called.

        Args:
            model: The model as it is called, or several.
        """
        self._averaged = set()
        self._several = parts_of(model.plain) if isinstance(model, Models) else []
        for part in parts_of(model):
            is_wrapped = isinstance(part, DistributedDataParallel)
            self._averaged |= {
                id(p) for p in part.parameters() if p.requires_grad or not is_wrapped
            }
            if is_wrapped:
                self._await_call(part)
            if is_wrapped and self._several:
                # buffers are shared at each step: a backward finds them as its forward left them
                part.require_forward_param_sync = False  # type: ignore[assignment]  # a plain bool
        inner = getattr(model, "_orig_mod", model)  # a compiled one
        if isinstance(inner, DistributedDataParallel):
            self.stand_in = StandIn(model)

    def _await_call(self, wrapper: nn.Module) -> None:
        self._uncalled.append(wrapper)

        def called(*_: Any) -> None:
            if torch.is_grad_enabled():
                self._uncalled.remove(wrapper)
                handle.remove()

        handle = wrapper.register_forward_pre_hook(called)

    def begin(self) -> None:
        """Let the modules besides the model be equal on all processes; a collective."""
        for module in (*self._several, *self.apart) if self._averaged is not None else ():
            for tensor in (*module.parameters(), *module.buffers()):
                if not hasattr(tensor, "full_tensor"):
                    dist.broadcast(tensor.data, 0)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Average the gradients that no wrapper averages, and share the buffers of rank 0.

        Args:
            parameters: The parameters that the open step moves.

        Raises:
            RunError: The networks of the model were called without the wrapper around it.
        """
        stood_in = self.stand_in is not None and self.stand_in.was_called
        for wrapper in self._uncalled if not stood_in else []:
            if any(p.grad is not None for p in wrapper.parameters()):
                raise RunError(
                    "parts of the model were called one by one, past the DistributedDataParallel "
                    "that averages their gradients: the processes would drift apart. Call "
                    "runner.model as a whole (its forward may take the name of a part), or hand "
                    'its parts over by name, model={"encoder": ..., "decoder": ...}, and call '
                    'runner.model["encoder"]'
                )
        averaged = self._averaged or set()
        own = [p for p in parameters if p.requires_grad and id(p) not in averaged]
        own = [p for p in own if not hasattr(p, "full_tensor")]
        if own:
            has = torch.tensor([float(p.grad is not None) for p in own], device=own[0].device)
            dist.all_reduce(has, dist.ReduceOp.MAX)
            for parameter in itertools.compress(own, has.tolist()):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(dist.get_world_size())
        for module in (*self._several, *self.apart):
            for buffer in module.buffers() if module.training else ():
                dist.broadcast(buffer, 0)
