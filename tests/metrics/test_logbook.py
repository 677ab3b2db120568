"""What is logged: exact means, moved to the host when somebody wants them."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danling import Callback
from danling.errors import MetricError, RunError
from danling.testing import TinyRunner


class Logs(Callback):
    def __init__(self):
        self.rows: list[tuple[int, dict[str, float]]] = []

    def on_log(self, runner, metrics):
        self.rows.append((runner.global_step, dict(metrics)))


class Constant(TinyRunner):
    """Its loss is the number of the batch, times a weight."""

    def train_step(self, batch):
        loss = self.model.weight.sum() * 0 + self.batch_index + 4.0 * self.epoch
        self.log("aux", loss * 2)
        self.log({"optim/temperature": 0.5})
        return loss

    def evaluate_step(self, batch):
        self.log("aux", 7)
        return torch.tensor(float(self.epoch))


def test_logged_values_are_means_over_the_window():
    logs = Logs()
    runner = Constant({"log_interval": 3}, callbacks=[logs])

    runner.train()

    rows = [(step, row["train/loss"]) for step, row in logs.rows if "train/loss" in row]
    assert rows == [(3, 1.0), (6, 4.0), (8, 6.5)]
    assert [row["train/aux"] for _, row in logs.rows if "train/aux" in row] == [2.0, 8.0, 13.0]
    assert logs.rows[0][1]["optim/temperature"] == 0.5
    assert logs.rows[0][1]["optim/lr/0"] == 0.1
    assert [row for _, row in logs.rows if "val/loss" in row] == [
        {"val/loss": epoch, "val/aux": 7.0} for epoch in (0.0, 1.0)
    ]


def test_results_of_epochs_are_means_over_the_epoch_whatever_the_log_interval():
    results = []
    for interval in (1, 3, 100):
        runner = Constant({"log_interval": interval}, callbacks=[Logs()])
        runner.train()
        results.append(runner.results)

    assert results[0] == results[1] == results[2]
    assert [result["train"] for result in results[0]] == [
        {"loss": 1.5, "aux": 3.0},
        {"loss": 5.5, "aux": 11.0},
    ]
    assert results[0][1]["val"] == {"loss": 1.0, "aux": 7.0}


def test_a_logged_weight_is_logged_as_it_was():
    logs = Logs()

    class Scaled(TinyRunner):
        def train_step(self, batch):
            self.log("weight", self.model.weight[0, 0])
            return super().train_step(batch)

    class Watching(Callback):
        def __init__(self):
            self.seen = []

        def on_batch_start(self, runner, batch):
            self.seen.append(runner.model.weight[0, 0].item())

    watching = Watching()
    runner = Scaled({"max_epochs": 1, "log_interval": 4}, callbacks=[logs, watching])
    runner.train()

    assert logs.rows[0][1]["train/weight"] == pytest.approx(sum(watching.seen) / 4, rel=1e-7)


def test_logging_what_is_no_number_names_it():
    runner = TinyRunner()

    with pytest.raises(MetricError, match=r"log\('aux'\): the tensor has shape \(2,\)"):
        runner.log("aux", torch.zeros(2))
    with pytest.raises(MetricError, match=r"log\('aux'\): a str is no number"):
        runner.log({"aux": "high"})


class Counting:
    """Counts what moves a tensor to the host."""

    METHODS = ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy")

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[tuple[int, str]] = []
        self.runner: Any = None
        for name in self.METHODS:
            monkeypatch.setattr(Tensor, name, self.wrapped(name, getattr(Tensor, name)))

    def wrapped(self, name, method):
        def call(tensor, *args, **kwargs):
            if self.runner is not None:
                self.calls.append((self.runner.global_step, name))
            return method(tensor, *args, **kwargs)

        return call


def test_no_value_moves_to_the_host_but_when_it_is_logged(monkeypatch: pytest.MonkeyPatch):
    logs = Logs()

    class Auxiliary(TinyRunner):
        def train_step(self, batch):
            output = super().train_step(batch)
            self.log("aux", output["loss"] * 2)
            return output

    class Norm(Callback):
        def on_step(self, runner):
            assert runner.grad_norm.ndim == 0

    config = {
        "max_epochs": 1,
        "log_interval": 10,
        "max_grad_norm": 1.0,
        "evaluate_every": None,
        "accelerate": {"gradient_accumulation_steps": 2},
    }
    runner = Auxiliary(config, samples=200, callbacks=[logs, Norm()])
    counting = Counting(monkeypatch)

    class Only(Callback):  # sampling may look at its indices: the loop is what is counted
        def on_fetch_start(self, runner):
            counting.runner = None

        def on_fetch_end(self, runner, batch):
            counting.runner = runner

    runner.callbacks.append(Only())
    runner.train()

    assert runner.global_step == 25
    assert {step for step, _ in counting.calls} == {10, 20, 25}
    assert [step for step, _ in logs.rows] == [10, 20, 25]


def test_values_that_are_not_finite_are_seen_in_the_log(caplog: pytest.LogCaptureFixture):
    logs = Logs()

    class Broken(TinyRunner):
        def train_step(self, batch):
            output = super().train_step(batch)
            return output["loss"] * (math.nan if self.global_step == 1 else 1.0)

    runner = Broken({"max_epochs": 1, "log_interval": 2}, callbacks=[logs])
    with caplog.at_level(logging.WARNING):
        runner.train()

    assert math.isnan(logs.rows[0][1]["train/loss"])
    assert logs.rows[0][1]["train/nonfinite"] == 1
    assert "not finite by global step 2" in caplog.text
    assert math.isnan(runner.results[0]["train"]["loss"])


def test_the_norm_of_the_gradients_is_that_before_clipping():
    norms, logs = [], Logs()

    class Norm(Callback):
        def on_step(self, runner):
            gradients = [p.grad for p in runner.model.parameters()]
            clipped = nn.utils.get_total_norm(gradients)
            norms.append((float(runner.grad_norm), float(clipped)))

    config = {"max_epochs": 1, "log_interval": 4, "max_grad_norm": 1e-3}
    TinyRunner(config, callbacks=[logs, Norm()]).train()

    assert all(before > 1e-2 and after == pytest.approx(1e-3, rel=1e-3) for before, after in norms)
    assert logs.rows[0][1]["optim/grad_norm"] == pytest.approx(
        sum(before for before, _ in norms) / 4
    )


def test_the_norm_outside_of_a_step_is_an_error():
    runner = TinyRunner()

    with pytest.raises(RunError, match="grad_norm"):
        _ = runner.grad_norm
    runner.train()
    with pytest.raises(RunError, match="grad_norm"):
        _ = runner.grad_norm
