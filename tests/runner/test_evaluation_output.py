"""What an evaluate step may return, and what hooks get of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danling as dl
from danling.errors import MetricError
from danling.runner.steps import forward, forward_with_output
from danling.testing import TinyRunner, accuracy


class Outputs(dl.Callback):
    """Keeps what the hooks of an evaluation get."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_evaluate_batch_end(self, runner: Any, batch: Any, output: Any) -> None:
        self.seen.append(output)


def test_hooks_get_the_output_of_the_model_beside_loss_and_metrics() -> None:
    outputs = Outputs()
    runner = TinyRunner(callbacks=[outputs])
    result = runner.evaluate("val")

    tensors = runner.datasets["val"].tensors
    with torch.no_grad():
        expected = runner.model(tensors[0])
    assert len(outputs.seen) == 4
    assert all(set(output) == {"loss", "output", "accuracy"} for output in outputs.seen)
    assert torch.equal(torch.cat([output["output"] for output in outputs.seen]), expected)
    assert result["loss"] == pytest.approx(float(runner.criterion(expected, tensors[1])), rel=1e-6)
    assert set(result) == {"loss", "accuracy"}


class Returned(dict[str, Any]):
    """What models of transformers return: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class WithLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor, labels: Tensor) -> Any:
        logits = self.layer(inputs)
        return Returned(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def test_so_they_do_of_a_model_that_makes_its_own_loss() -> None:
    model, batch = WithLabels(), {"inputs": torch.randn(5, 4), "labels": torch.arange(5) % 3}

    output = forward_with_output(model, None, batch, {"accuracy": accuracy})

    plain = forward(model, None, batch, {"accuracy": accuracy})
    assert set(output) == {"loss", "output", "accuracy"}
    assert torch.equal(output["loss"], plain["loss"])
    assert torch.equal(output["accuracy"], plain["accuracy"])
    assert torch.equal(output["output"], model.layer(batch["inputs"]))


@pytest.mark.parametrize("metrics", [{}, {"accuracy": accuracy}])
def test_what_a_model_measures_itself_stays_beside_the_metrics(metrics: dict[str, Any]) -> None:
    def model(inputs: Tensor, labels: Tensor) -> Any:
        loss = inputs.mean()
        return {"loss": loss, "bits": loss * 2, "n": torch.tensor(3), "logits": inputs}

    batch = {"inputs": torch.randn(5, 4), "labels": torch.arange(5) % 3}
    evaluated = forward_with_output(model, None, batch, metrics)
    trained = forward(model, None, batch, metrics)

    for output in (evaluated, trained):
        assert float(output["bits"]) == 2 * float(output["loss"])
        assert int(output["n"]) == 3
        assert set(metrics) <= set(output)
    assert torch.equal(evaluated["output"], batch["inputs"])
    assert set(evaluated) == {"loss", "bits", "n", "output", *metrics}


def test_an_output_of_one_number_is_no_metric() -> None:
    runner = TinyRunner()
    runner.model, runner.metrics = nn.Linear(4, 1), {}
    runner.criterion = lambda output, target: output.mean()
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    runner.config.dataloader.batch_size = 1

    assert set(runner.evaluate("val")) == {"loss"}


STEPS: dict[str, Any] = {
    "nothing": (lambda output, target: None, set()),
    "empty": (lambda output, target: {}, set()),
    "metrics": (lambda output, target: {"f1": accuracy(output, target), "output": output}, {"f1"}),
}


@pytest.mark.parametrize("case", STEPS)
def test_an_evaluate_step_may_have_no_loss(case: str) -> None:
    step, names = STEPS[case]
    outputs = Outputs()

    class Own(TinyRunner):
        def evaluate_step(self, batch: Any) -> Any:
            return step(self.model(batch[0]), batch[1])

    runner = Own({"monitor": "train/loss"}, callbacks=[outputs])
    runner.train()

    targets = runner.datasets["val"].tensors
    assert [set(result["val"]) for result in runner.results] == [names, names]
    assert runner.best_score == min(result["train"]["loss"] for result in runner.results)
    if names:
        with torch.no_grad():
            expected = float(accuracy(runner.model(targets[0]), targets[1]))
        assert runner.results[-1]["val"]["f1"] == pytest.approx(expected, rel=1e-6)
        assert all("output" in output for output in outputs.seen)


def test_that_there_is_no_best_then_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Own(TinyRunner):
        def evaluate_step(self, batch: Any) -> Any:
            return {"f1": accuracy(self.model(batch[0]), batch[1])}

    Own().train()
    told = "val/loss is not in the result, so that none is the best: set monitor to one of val/f1"
    assert [record.getMessage() for record in caplog.records].count(told) == 1
    caplog.clear()
    Own({"monitor": "val/f1"}).train()
    TinyRunner().train()
    assert "none is the best" not in caplog.text


def test_the_default_step_of_an_evaluation_still_needs_a_loss() -> None:
    batch = {"inputs": torch.randn(2, 4)}

    def model(inputs: Tensor) -> Any:
        return {"logits": inputs}

    with pytest.raises(MetricError, match="a mapping without a 'loss'"):
        forward_with_output(model, None, batch, {})
    with pytest.raises(MetricError, match="override evaluate_step"):
        forward_with_output(nn.Linear(4, 3), None, (batch["inputs"], None), {})


# Several optimizers, each of which steps by itself


class Apart(TinyRunner):
    """A network and a bias that learn from losses of their own, one after the other."""

    def __init__(self, config: Any = None, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.optimizer = {
            name: torch.optim.SGD([parameter], lr=0.1)
            for name, parameter in self.model.named_parameters()
        }

    def train_step(self, batch: Any) -> Any:
        return dict.fromkeys(self.optimizer, 1.0 + self.batch_index)

    def step(self, output: Any = None, optimizer: str | None = None, closure: Any = None) -> None:
        for name, loss in output.items():
            scale = {"weight": 1, "bias": 10}[name]
            zero = 0 * dict(self.model.named_parameters())[name].sum()
            super().step(scale * loss + zero, optimizer=name)


def test_each_of_several_optimizers_has_a_loss_of_its_own_and_progress_counts_batches() -> None:
    progress: list[float] = []

    class Progress(dl.Callback):
        def on_batch_end(self, runner: Any, batch: Any, output: Any) -> None:
            progress.append(runner.progress)

        def on_epoch_start(self, runner: Any) -> None:
            progress.append(runner.progress)

    runner = Apart(callbacks=[Progress()])
    runner.train()

    assert runner.global_step == 2 * 8
    assert [result["train"] for result in runner.results] == [
        {"weight/loss": 2.5, "bias/loss": 25.0}
    ] * 2
    assert progress == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0]


def test_with_a_limit_of_steps_it_counts_those() -> None:
    runner = Apart({"max_epochs": None, "max_steps": 8})
    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                assert runner.progress == runner.global_step / 8

    assert runner.global_step == 8
