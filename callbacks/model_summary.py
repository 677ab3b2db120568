"""What a model is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from danling.callback import Callback
from danling.errors import CallbackError

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["ModelSummary", "summarize"]


class ModelSummary(Callback):
    """Log a table of the model's modules and how many parameters they have, when a training starts.

    Shows at once that the right model is trained, and the right part of it.

    Args:
        max_depth: The depth of the modules in the table: 1 is the children of the model, -1 all.

    Raises:
        CallbackError: The depth is not -1 or a positive integer.

    Example:
        >>> ModelSummary(max_depth=2).name
        'model_summary'
    """

    name = "model_summary"
    only_watches = True

    def __init__(self, max_depth: int = 1) -> None:
        if type(max_depth) is not int or max_depth < -1 or max_depth == 0:
            raise CallbackError(
                f"ModelSummary(max_depth={max_depth!r}): must be positive, or -1 for all"
            )
        self.max_depth = max_depth

    def on_train_start(self, runner: Runner) -> None:
        """Log the table."""
        if runner.is_main_process and isinstance(runner.unwrapped_model, nn.Module):
            runner.logger.info("model\n%s", summarize(runner.unwrapped_model, self.max_depth))


def summarize(model: nn.Module, max_depth: int = 1) -> str:
    """A table of the modules of a model; parameters that are shared are counted once in each line.

    Args:
        model: The model.
        max_depth: The depth of the modules in the table; -1 for all.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[2].requires_grad_(False)
        >>> print(summarize(model))
        module            type        parameters  trainable
        (model)           Sequential          58         40
        0                 Linear              40         40
        1                 ReLU                 0          0
        2                 Linear              18          0
    """
    rows = list(_rows(model, max_depth))
    names = max(16, *(len(name) for name, *_ in rows))
    kinds = max(10, *(len(kind) for _, kind, *_ in rows))
    lines = [f"{'module':<{names}}  {'type':<{kinds}}  {'parameters':>10}  {'trainable':>9}"]
    lines += [
        f"{name:<{names}}  {kind:<{kinds}}  {count:>10,}  {trainable:>9,}"
        for name, kind, count, trainable in rows
    ]
    return "\n".join(lines)


def _rows(model: nn.Module, max_depth: int) -> Iterator[tuple[str, str, int, int]]:
    for name, module in model.named_modules():
        depth = name.count(".") + 1 if name else 0
        if depth <= max_depth or max_depth == -1:
            parameters = list(module.parameters())
            count = sum(_size(parameter) for parameter in parameters)
            trainable = sum(_size(p) for p in parameters if p.requires_grad)
            yield name or "(model)", type(module).__name__, count, trainable


def _size(parameter: nn.Parameter) -> int:
    """Of the whole, where DeepSpeed has given this process a part of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
