"""Momentum and weight decay, which are logged beside the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from danling.callback import Callback
from danling.optimization.together import by_name, separate

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["LearningRateMonitor"]


class LearningRateMonitor(Callback):
    """Log momentum and weight decay of every parameter group, at the log interval.

    The learning rate is logged by the runner anyway, as `optim/lr/...`; this adds what a one-cycle
    or a decoupled schedule moves besides: `optim/momentum/...` (of Adam its first beta) and
    `optim/weight_decay/...`. The last part of a tag is the number of the group or its `"name"`,
    with the number where several have one name; before it is the name of the optimizer where there
    are several.

    Args:
        momentum: Whether the momentum is logged.
        weight_decay: Whether the weight decay is logged.

    Example:
        >>> LearningRateMonitor(momentum=False).name
        'learning_rate_monitor'
    """

    name = "learning_rate_monitor"
    only_watches = True

    def __init__(self, *, momentum: bool = True, weight_decay: bool = True) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay

    def on_step(self, runner: Runner) -> None:
        """Log them on the steps whose metrics are logged."""
        if not runner.is_log_step:
            return
        for name, each in separate(by_name(runner.optimizer)).items():
            for tag, value in self._values(each.param_groups):
                kind, _, group = tag.partition("/")
                runner.log("/".join(part for part in ("optim", kind, name, group) if part), value)

    def _values(self, groups: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        names = [group.get("name", index) for index, group in enumerate(groups)]
        for index, group in enumerate(groups):
            key = names[index] if names.count(names[index]) == 1 else f"{names[index]}-{index}"
            momentum = group.get("momentum", group.get("betas", [None])[0])
            if self.momentum and momentum is not None:
                yield f"momentum/{key}", float(momentum)
            if self.weight_decay and "weight_decay" in group:
                yield f"weight_decay/{key}", float(group["weight_decay"])
