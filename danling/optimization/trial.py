"""Steps that are tried before a training, and undone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Undo"]


class Undo:
    """Copies of what steps of a training change, to put it back.

    Args:
        modules: The modules whose parameters and buffers are kept.
        optimizers: The optimizers, whose state and parameters are kept.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> before, undo = model.weight.tolist(), Undo([model], [optimizer])
        >>> model(torch.ones(2)).sum().backward()
        >>> optimizer.step()
        >>> undo()
        >>> model.weight.tolist() == before, model.weight.grad, len(optimizer.state)
        (True, None, 0)
    """

    def __init__(self, modules: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        tensors = [
            tensor for module in modules for tensor in (*module.parameters(), *module.buffers())
        ]
        tensors += [
            parameter
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        unique = {id(tensor): tensor for tensor in tensors}
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in unique.values()]
        self._states = [copy.deepcopy(optimizer.state_dict()) for optimizer in self._optimizers]
        # a state dict shares learning rates that are tensors, and loading copies into none of them
        self._rates = [copy.deepcopy(_rates(optimizer)) for optimizer in self._optimizers]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back, and forget the gradients."""
        for tensor, value in self._tensors:
            tensor.copy_(value)
            tensor.grad = None
        for optimizer, state, rates in zip(
            self._optimizers, self._states, self._rates, strict=True
        ):
            optimizer.state.clear()  # what was made by the first step
            optimizer.load_state_dict(copy.deepcopy(state))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def _rates(optimizer: Optimizer) -> list[float | Tensor | Any]:
    return [group["lr"] for group in optimizer.param_groups]
