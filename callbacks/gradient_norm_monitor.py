"""The norms of gradients in the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from danling.callback import Callback

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["GradientNormMonitor"]


class GradientNormMonitor(Callback):
    """Log the 2-norm of the gradients before clipping: of all of them, and by layer.

    A norm that explodes or vanishes is seen before the loss shows it, and tells where to clip.
    `optim/grad_norm` is the mean over the steps of the log interval, computed once per step and
    shared with clipping; `grad_norm/<module>` is of the steps that are logged. Nothing is moved to
    the host before the log.

    Args:
        per_layer: Whether the norm of each module that has parameters of its own is logged.

    Example:
        >>> GradientNormMonitor(per_layer=True).name
        'gradient_norm_monitor'
    """

    name = "gradient_norm_monitor"
    only_watches = True

    def __init__(self, *, per_layer: bool = False) -> None:
        self.per_layer = per_layer

    def on_before_step(self, runner: Runner) -> None:
        """Have the norm computed, which the runner then logs; an engine gives it after the step."""
        if not runner.gradients_are_readable:
            return
        _ = runner.grad_norm
        if self.per_layer and (runner.global_step + 1) % runner.config.log_interval == 0:
            runner.log(layer_norms(runner.unwrapped_model))


def layer_norms(model: torch.nn.Module) -> dict[str, Tensor]:
    """The norm of the gradients of each module with parameters of its own, by tag.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = model(torch.ones(1, 2)).sum().backward()
        >>> {tag: round(norm.item(), 4) for tag, norm in layer_norms(model).items()}
        {'grad_norm/0': 1.4142}
    """
    norms = {}
    for name, module in model.named_modules():
        gradients = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        if gradients:
            norms[f"grad_norm/{name or 'model'}"] = _norm(gradients)
    return norms


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    # the norms of a sparse gradient's values are those of the gradient, once they are coalesced
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    norm = torch.nn.utils.get_total_norm(dense)
    whole = getattr(norm, "full_tensor", None)  # of a DTensor, whose parts are on other processes
    return norm if whole is None else whole()
