"""The mean of the weights at the ends of the last epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch

from danling.callbacks.weight_averaging import WeightAveraging
from danling.errors import CallbackError, did_you_mean

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["StochasticWeightAveraging"]


class StochasticWeightAveraging(WeightAveraging):
    """Average the weights at the ends of the last epochs, at a learning rate of its own.

    From `swa_epoch_start` on the learning rate of every parameter group moves within
    `annealing_epochs` from where it is to that of `swa_lrs` and stays there, as with
    `torch.optim.swa_utils.SWALR`; the schedule of the runner has no effect any more. The method is
    that of "Averaging Weights Leads to Wider Optima and Better Generalization" (Izmailov et al.,
    2018). Batch normalisation uses the averaged buffers, so that no further pass over the data is
    needed.

    What is evaluated, saved and exchanged is as in `WeightAveraging`. It costs one pass over the
    weights per epoch, and an assignment per parameter group and step.

    Args:
        swa_lrs: The learning rate, or one for each parameter group.
        swa_epoch_start: The number of epochs after which the averaging begins; a number below 1 is
            a share of `max_epochs`.
        annealing_epochs: The number of epochs in which the learning rate gets to `swa_lrs`.
        annealing_strategy: Whether it gets there along a cosine (`"cos"`) or a line (`"linear"`).
        device: The device on which the average is kept; None: that of the weights.

    Raises:
        CallbackError: An argument cannot be meant; or the weights are spread over processes.

    Example:
        >>> StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.75).annealing_epochs
        10
    """

    name = "stochastic_weight_averaging"

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__("1 epoch", device=device)
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(rate > 0 for rate in rates):
            raise CallbackError(f"StochasticWeightAveraging(swa_lrs={swa_lrs!r}): must be positive")
        if annealing_strategy not in ("cos", "linear"):
            near = did_you_mean(str(annealing_strategy), ["cos", "linear"])
            raise CallbackError(
                f"StochasticWeightAveraging(annealing_strategy={annealing_strategy!r}): {near}"
            )
        if swa_epoch_start < 0 or annealing_epochs < 0:
            raise CallbackError(
                f"StochasticWeightAveraging(swa_epoch_start={swa_epoch_start!r}, "
                f"annealing_epochs={annealing_epochs!r}): must not be negative"
            )
        self.swa_lrs = swa_lrs
        self.swa_epoch_start = swa_epoch_start
        self.annealing_epochs = annealing_epochs
        self.annealing_strategy = annealing_strategy
        self._first_epoch = 0
        self._rates: list[float] = []  # of the groups when it began

    def should_update(self, runner: Runner) -> bool:
        """Whether this is the last batch of an epoch that counts."""
        return runner.epoch >= self._first_epoch and super().should_update(runner)

    def on_setup(self, runner: Runner) -> None:
        """Find out when it begins, and for how many parameter groups there are rates."""
        super().on_setup(runner)
        if runner.global_step == 0:
            self._rates = []
        groups = len(_groups(runner))
        if isinstance(self.swa_lrs, list) and len(self.swa_lrs) != groups:
            raise CallbackError(
                f"StochasticWeightAveraging(swa_lrs={self.swa_lrs!r}): there are {groups} "
                "parameter groups"
            )
        self._first_epoch = int(self.swa_epoch_start)
        if 0 < self.swa_epoch_start < 1:
            if runner.config.max_epochs is None:
                raise CallbackError(
                    f"StochasticWeightAveraging(swa_epoch_start={self.swa_epoch_start!r}): it is a "
                    "share of max_epochs, which is not set"
                )
            self._first_epoch = int(runner.config.max_epochs * self.swa_epoch_start)

    def on_before_step(self, runner: Runner) -> None:
        """Set the learning rates of this epoch."""
        passed = runner.epoch - self._first_epoch
        if passed < 0:
            return
        groups = _groups(runner)
        if not self._rates:
            self._rates = [float(group["lr"]) for group in groups]
        share = self._annealed(passed)
        targets = self.swa_lrs if isinstance(self.swa_lrs, list) else [self.swa_lrs] * len(groups)
        for group, before, target in zip(groups, self._rates, targets, strict=True):
            group["lr"] = target * share + before * (1 - share)

    def state_dict(self) -> dict[str, Any]:
        """That of the average, and the learning rates from which it began."""
        return super().state_dict() | {"rates": list(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._rates = list(state["rates"])

    def _annealed(self, epochs: int) -> float:
        """How far the learning rate has come after so many epochs, from 0 to 1."""
        share = min(1.0, epochs / self.annealing_epochs) if self.annealing_epochs else 1.0
        return (1 - math.cos(math.pi * share)) / 2 if self.annealing_strategy == "cos" else share


def _groups(runner: Runner) -> list[dict[str, Any]]:
    return [group for optimizer in runner.optimizers for group in optimizer.param_groups]
