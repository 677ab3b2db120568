"""What a training logs: values by name, averaged on their device until somebody wants numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from danling.errors import MetricError

__all__ = ["checked_scalar"]


def checked_scalar(name: str, value: Any) -> Any:
    """A logged value as it is kept: a scalar tensor without its graph, or a float.

    Raises:
        MetricError: It is neither.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().clone()  # a weight would go on changing
    if isinstance(value, Tensor):
        raise MetricError(f"log({name!r}): the tensor has shape {tuple(value.shape)}, log a scalar")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MetricError(f"log({name!r}): a {type(value).__name__} is no number") from None
