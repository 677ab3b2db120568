"""The mean over the last epochs; what all averages share is in test_weight_averaging."""

from __future__ import annotations

import torch

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from danling.testing import TinyRunner


def test_the_average_is_of_the_epochs_from_its_start_on():
    weights: list[torch.Tensor] = []
    look = LambdaCallback(on_epoch_end=lambda r: weights.append(r.model.weight.detach().clone()))
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    runner = TinyRunner({"max_epochs": 4}, callbacks=[swa, look])

    runner.train()

    saved = runner.state_dict()["model"]["weight"]
    candidates = [torch.stack(weights[start:]).mean(dim=0) for start in range(4)]
    assert any(torch.allclose(saved, candidate, atol=1e-6) for candidate in candidates[1:3])
    assert not torch.allclose(saved, candidates[0], atol=1e-6)
