"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from danling.callbacks.weight_averaging import WeightAveraging
from danling.errors import CallbackError
from danling.triggers import Every

__all__ = ["EMAWeightAveraging"]


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights; evaluate, predict and save with it.

    After each update the average is `decay` times itself plus `1 - decay` times the weights, as
    with `torch.optim.swa_utils.get_ema_multi_avg_fn`. What is evaluated, saved and exchanged, and
    what that costs, is as in `WeightAveraging`.

    Args:
        decay: The share of the average that stays, between 0 and 1.
        every: The time from one update of the average to the next, in steps or epochs.
        start: The time of the first update, as `"1000 steps"` or `"5 epochs"`; None: the beginning.
        use_buffers: Whether buffers are averaged too; else those of the last update are used.
        device: The device on which the average is kept; None: that of the weights.

    Raises:
        CallbackError: An argument cannot be meant; or the weights are spread over processes.

    Example:
        >>> EMAWeightAveraging(decay=0.9999, start="1 epoch").decay
        0.9999
    """

    name = "ema_weight_averaging"

    def __init__(
        self,
        decay: float = 0.999,
        every: str | Every = "1 step",
        *,
        start: str | Every | None = None,
        use_buffers: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0 < decay < 1:
            raise CallbackError(f"EMAWeightAveraging(decay={decay!r}): must be between 0 and 1")
        super().__init__(
            every,
            start=start,
            use_buffers=use_buffers,
            device=device,
            multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]  # torch has no types here
        )
        self.decay = decay
