"""The moving average by its formula; what all averages share is in test_weight_averaging."""

from __future__ import annotations

import pytest
import torch

from danling.callbacks.ema_weight_averaging import EMAWeightAveraging
from danling.callbacks.lambda_callback import LambdaCallback
from danling.errors import CallbackError
from danling.testing import TinyRunner


def test_each_step_moves_the_average_by_the_rest_of_the_decay():
    weights: list[torch.Tensor] = []
    look = LambdaCallback(on_step=lambda r: weights.append(r.model.weight.detach().clone()))
    average = EMAWeightAveraging(decay=0.9)
    runner = TinyRunner({"max_epochs": 1}, callbacks=[average, look])

    runner.train()

    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.9 * expected + 0.1 * weight
    saved = runner.state_dict()["model"]["weight"]
    assert torch.allclose(saved, expected, atol=1e-6)
    assert not torch.equal(saved, runner.model.weight)


def test_a_decay_outside_of_0_to_1_is_refused():
    with pytest.raises(CallbackError, match="decay"):
        EMAWeightAveraging(decay=1.5)
