"""The stand-in of a process for a batch that it skips, so that the others do not wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["StandIn"]


class StandIn:
    """Takes part in what `DistributedDataParallel` does for a batch that this process skips.

    The others share buffers in their forward, and average gradients in their backward. A process
    without a loss does the same with gradients of zero, so that its share of the average is what it
    has gathered in the window before.

    It makes as many forwards as the last batch had that was not skipped.

    Args:
        model: The model as it is called.

    Attributes:
        was_called: Whether the model was called with gradients, on this process or for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.was_called = False
        self._wrapper: Any = getattr(model, "_orig_mod", model)
        self._forwards, self._usual = 0, 1
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self._forwards += 1
            self.was_called = True

    def end_batch(self) -> None:
        """Note that this process takes part by itself."""
        self._usual, self._forwards = self._forwards or self._usual, 0

    def skip(self, *, closes: bool) -> None:
        """Take part for this process.

        Args:
            closes: Whether the gradients are averaged after this batch.
        """
        wrapper, missing, self._forwards = self._wrapper, self._usual - self._forwards, 0
        nothing = of_no_weight(wrapper)
        self.was_called = True
        for _ in range(missing):
            wrapper._pre_forward()
            nothing = wrapper._post_forward(nothing)
        if not closes:
            return
        if missing <= 0:  # a forward has prepared the backward of what it gave
            finds = wrapper.find_unused_parameters and not wrapper.static_graph
            wrapper.reducer.prepare_for_backward([nothing] if finds else [])
        nothing.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it


def of_no_weight(model: DistributedDataParallel) -> Tensor:
    """A loss that all trained parameters of a model have part in, with gradients of zero."""
    parts = [p.sum().float() * 0.0 for p in model.parameters() if p.requires_grad]
    return torch.stack(parts).sum()
