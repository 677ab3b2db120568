from __future__ import annotations

import pytest
import torch
from torch import nn

from danling.callbacks.gradient_norm_monitor import GradientNormMonitor, layer_norms
from danling.callbacks.lambda_callback import LambdaCallback
from danling.testing import CallbackContract


def test_a_layer_s_norm_is_that_of_its_own_parameters():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    model(torch.randn(5, 3)).sum().backward()

    norms = layer_norms(model)

    assert sorted(norms) == ["grad_norm/0", "grad_norm/2"]
    for tag, layer in (("grad_norm/0", model[0]), ("grad_norm/2", model[2])):
        gradients = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        assert norms[tag].item() == pytest.approx(gradients.norm().item())


def test_a_layer_without_gradients_has_no_norm():
    model = nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 1))
    model(torch.randn(5, 3)).sum().backward()

    assert sorted(layer_norms(model)) == ["grad_norm/1"]


def test_the_norm_is_the_mean_over_the_steps_and_before_clipping(make_runner):
    rows: list[dict[str, float]] = []
    norms: list[float] = []

    def measure(runner):
        gradients = [p.grad.flatten() for p in runner.unwrapped_model.parameters()]
        norms.append(torch.cat(gradients).norm().item())

    runner = make_runner(
        [
            GradientNormMonitor(per_layer=True),
            LambdaCallback(
                on_before_step=measure,
                on_log=lambda runner, metrics: rows.append(dict(metrics)),
            ),
        ],
        max_epochs=1,
        max_grad_norm=0.001,
    )
    runner.train()

    rows = [row for row in rows if "train/loss" in row]
    means = [sum(norms[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert [row["optim/grad_norm"] for row in rows] == pytest.approx(means, rel=1e-5)
    for row, total in zip(rows, norms[1::2], strict=True):
        parts = [row["grad_norm/0"], row["grad_norm/2"]]
        assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(total, rel=1e-5)


def test_by_default_only_the_total_is_logged(make_runner):
    rows: list[dict[str, float]] = []
    keep = LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics)))

    make_runner([GradientNormMonitor(), keep], max_epochs=1).train()

    assert "optim/grad_norm" in rows[0]
    assert not any(tag.startswith("grad_norm/") for row in rows for tag in row)


def test_sparse_gradients_have_their_norm():
    embedding = torch.nn.Embedding(6, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse

    norms = layer_norms(torch.nn.Sequential(embedding))

    expected = gradient.to_dense().norm()
    assert norms["grad_norm/0"].item() == pytest.approx(expected.item())


class TestContract(CallbackContract):
    def make(self):
        return GradientNormMonitor()
