"""Accumulation of gradients that changes with the epochs."""

from __future__ import annotations

from collections.abc import Mapping

from danling.callback import Callback
from danling.errors import CallbackError

__all__ = ["GradientAccumulationScheduler"]


class GradientAccumulationScheduler(Callback):
    """Accumulate the gradients of more, or fewer, batches from given epochs on.

    It takes the place of `gradient_accumulation_steps` in the configuration, which holds for the
    epochs before the first one that is given. The runner asks for the number at the start of each
    epoch, and for the total number of steps; a resumed run has the number of its epoch. It costs
    nothing per step and has no state.

    Args:
        scheduling: The number of batches of one step, by the epoch from which it holds; epochs are
            counted from 0.

    Raises:
        CallbackError: An epoch or a number is not an integer, or too small.

    Example:
        >>> scheduler = GradientAccumulationScheduler({0: 8, 4: 4, 8: 1})
        >>> [scheduler.accum_steps_in(epoch, 1) for epoch in (0, 3, 4, 9)]
        [8, 8, 4, 1]
    """

    name = "gradient_accumulation_scheduler"

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not isinstance(scheduling, Mapping) or not scheduling:
            raise CallbackError(
                f"GradientAccumulationScheduler(scheduling={scheduling!r}): a mapping of epochs to "
                "numbers of batches, as {0: 8, 4: 1}"
            )
        for epoch, steps in scheduling.items():
            if type(epoch) is not int or epoch < 0 or type(steps) is not int or steps < 1:
                raise CallbackError(
                    f"GradientAccumulationScheduler(scheduling={{{epoch!r}: {steps!r}}}): from an "
                    "epoch of at least 0 on, at least 1 batch"
                )
        self.scheduling = dict(sorted(scheduling.items()))

    def accum_steps_in(self, epoch: int, configured: int) -> int:
        """The number of batches of one step in an epoch; what the runner asks for.

        Args:
            epoch: The epoch, counted from 0.
            configured: The number of the configuration.
        """
        begun = [steps for first, steps in self.scheduling.items() if first <= epoch]
        return begun[-1] if begun else configured
