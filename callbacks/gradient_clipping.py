"""Gradients that are too large are made smaller."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from danling.callback import Callback, Priority
from danling.errors import CallbackError, did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["GradientClipping"]

_TYPES = ("norm", "value", "adaptive")
_LEAST_WEIGHT, _LEAST_GRADIENT = 1e-3, 1e-6


class GradientClipping(Callback):
    """Clip the gradients before each step: their total norm, each value, or unit by unit.

    For the first two the configuration has `max_grad_norm` and `max_grad_value`, which do the same;
    this one has other norms and the adaptive kind. Adaptive clipping bounds the norm of the
    gradient of each unit (a row of a weight) by `threshold` times the norm of its weights, from
    "High-Performance Large-Scale Image Recognition Without Normalization" (Brock et al., 2021).

    It runs after callbacks of other priorities that read gradients, and `runner.grad_norm` stays
    the norm before clipping. Each step costs what the kind of clipping costs; nothing waits for the
    device, and there is no state.

    Args:
        clipping_type: The kind of the bound: `"norm"`, `"value"` or `"adaptive"`.
        threshold: The largest norm, the largest magnitude, or the largest ratio.
        norm_type: The order of the norm that is bounded, for `"norm"`.

    Raises:
        CallbackError: An argument cannot be meant, or the configuration clips as well.

    Example:
        >>> GradientClipping("adaptive", 0.01).threshold
        0.01
    """

    name = "gradient_clipping"
    priority = Priority.VERY_LOW

    def __init__(
        self,
        clipping_type: Literal["norm", "value", "adaptive"] = "norm",
        threshold: float = 1.0,
        *,
        norm_type: float = 2.0,
    ) -> None:
        if clipping_type not in _TYPES:
            near = did_you_mean(str(clipping_type), _TYPES)
            raise CallbackError(f"GradientClipping(clipping_type={clipping_type!r}): {near}")
        for argument, value in (("threshold", threshold), ("norm_type", norm_type)):
            if not value > 0 or (argument == "threshold" and math.isinf(value)):
                raise CallbackError(f"GradientClipping({argument}={value!r}): must be positive")
        self.clipping_type = clipping_type
        self.threshold = threshold
        self.norm_type = norm_type

    def on_setup(self, runner: Runner) -> None:
        """Refuse to clip twice: the second would use the norm from before the first."""
        if not runner.optimization.readable:
            raise CallbackError(
                "GradientClipping: this engine keeps its gradients to itself until the step; set "
                "max_grad_norm in the configuration, which the engine is given"
            )
        for key in ("max_grad_norm", "max_grad_value"):
            if runner.config.get(key) is not None:
                raise CallbackError(
                    f"GradientClipping: the configuration clips too ({key}={runner.config[key]}): "
                    "leave one of them out"
                )

    def on_before_step(self, runner: Runner) -> None:
        """Clip the gradients that are there."""
        parameters = [
            parameter
            for optimizer in runner.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not parameters:
            return
        if self.clipping_type == "value":
            _ = runner.grad_norm  # it is of the gradients before clipping, and shared
            clip_grad_value_(parameters, self.threshold)
        elif self.clipping_type == "adaptive":
            _ = runner.grad_norm
            clip_adaptively(parameters, self.threshold)
        else:
            self._clip_norm(runner, parameters)

    def _clip_norm(self, runner: Runner, parameters: list[Tensor]) -> None:
        norm = runner.grad_norm
        if self.norm_type != 2:
            norm = get_total_norm(
                [p.grad for p in parameters if p.grad is not None], self.norm_type
            )
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        with torch.no_grad():
            clip_grads_with_norm_(parameters, self.threshold, norm)


@torch.no_grad()
def clip_adaptively(parameters: list[Tensor], threshold: float) -> None:
    """Bound the norm of each unit's gradient by that of its weights, in place.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> weight.grad = torch.tensor([[0.0, 10.0]])
        >>> clip_adaptively([weight], 0.1)
        >>> weight.grad
        tensor([[0.0000, 0.5000]])
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        largest = _norm_of_units(parameter).clamp(min=_LEAST_WEIGHT) * threshold
        norm = _norm_of_units(gradient)
        scale = torch.where(norm > largest, largest / norm.clamp(min=_LEAST_GRADIENT), 1.0)
        gradient.mul_(scale.to(gradient.dtype))


def _norm_of_units(tensor: Tensor) -> Tensor:
    """The norm of each row, or of a vector as a whole; it broadcasts to the tensor."""
    if tensor.ndim <= 1:
        whole: Tensor = torch.linalg.vector_norm(tensor)
        return whole
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
    return norms
