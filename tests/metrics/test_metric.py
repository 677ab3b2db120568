from __future__ import annotations

import math

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from danling.errors import MetricError
from danling.metrics.metric import (
    compute,
    is_stateful,
    load_metric_state,
    measure,
    metric_state,
    own_copies,
    reset,
)
from danling.testing import TinyRunner, accuracy

CPU = torch.device("cpu")


class Largest:
    """A metric with the three methods and nothing else."""

    def __init__(self):
        self.value = -math.inf

    def update(self, output, target):
        self.value = max(self.value, float(output.max()))

    def compute(self):
        return self.value

    def reset(self):
        self.value = -math.inf


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (8, 8, 5)
    return [
        (torch.randn(n, 3, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def train_with(metrics, config=None):
    class Measuring(TinyRunner):
        def __init__(self, config):
            super().__init__(config, samples=21)
            self.metrics = metrics

    runner = Measuring({"dataloader": {"batch_size": 8}, "max_epochs": 2, **(config or {})})
    runner.train()
    return runner


def test_objects_and_functions_are_told_apart():
    assert is_stateful(Largest())
    assert is_stateful(MulticlassAccuracy(3))
    assert not is_stateful(accuracy)
    assert not is_stateful(torch.nn.CrossEntropyLoss())


@pytest.mark.parametrize("name", ["loss", "n"])
def test_a_metric_may_not_take_the_name_of_the_loss_or_of_the_count(name):
    with pytest.raises(MetricError, match=f"a metric cannot be named '{name}'"):
        train_with({name: accuracy})


def test_what_is_no_metric_is_refused():
    with pytest.raises(MetricError, match="'f1' is neither a function nor has it update, compute"):
        train_with({"f1": 0.5})


def test_a_function_that_gives_more_than_a_number_is_refused():
    with pytest.raises(MetricError, match=r"'hits' gave shape \(8,\): reduce it"):
        train_with({"hits": lambda output, target: (output.argmax(1) == target).float()})
    with pytest.raises(MetricError, match="'name' gave a str, which is no number"):
        train_with({"name": lambda output, target: "good"})


def test_an_object_that_gives_more_than_a_number_is_refused():
    with pytest.raises(MetricError, match=r"'accuracy' gave shape \(3,\)"):
        train_with({"accuracy": MulticlassAccuracy(3, average=None)})


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")

    runner = train_with({"half": lambda output, target: numpy.float32(0.5)})

    assert runner.results[0]["val"]["half"] == 0.5


def test_functions_see_outputs_without_a_graph():
    seen = []

    def metric(output, target):
        seen.append(output.requires_grad)
        return 0.5

    train_with({"metric": metric})

    assert set(seen) == {False}


def test_every_split_has_copies_of_its_own():
    largest = Largest()

    first, second = (own_copies({"largest": largest}, CPU) for _ in range(2))
    measure(first, *batches()[0])

    assert first["largest"] is not largest
    assert math.isinf(second["largest"].compute())
    assert math.isinf(largest.compute())


def test_a_metric_of_torchmetrics_is_computed_over_the_whole_split():
    runner = train_with({"f1": MulticlassF1Score(3, average="macro"), "accuracy": accuracy})

    points, target = runner.datasets["val"].tensors
    with torch.no_grad():
        expected = MulticlassF1Score(3, average="macro")(runner.model(points), target)
    assert runner.results[-1]["val"]["f1"] == pytest.approx(expected.item(), rel=1e-6)
    assert runner.evaluate("val") == runner.results[-1]["val"]


def test_a_metric_of_training_is_over_its_epoch_alone():
    runner = train_with({"accuracy": MulticlassAccuracy(3, average="micro")})
    by_function = train_with({"accuracy": accuracy})

    for result, expected in zip(runner.results, by_function.results, strict=True):
        assert result["train"]["accuracy"] == pytest.approx(expected["train"]["accuracy"])


def test_a_collection_gives_a_value_for_each_of_its_metrics():
    collection = torchmetrics.MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])

    runner = train_with({"all": collection})

    assert set(runner.results[0]["val"]) == {
        "loss",
        "all/MulticlassAccuracy",
        "all/MulticlassF1Score",
    }


def test_evaluation_by_steps_leaves_the_metrics_of_the_open_epoch_alone():
    quiet = train_with({"largest": Largest()}, {"evaluate_every": None})
    evaluated = train_with({"largest": Largest()}, {"evaluate_every": "1 steps"})

    trained = [result["train"] for result in evaluated.results if "train" in result]
    assert trained == [result["train"] for result in quiet.results]


def test_metrics_are_reset_by_those_who_use_them():
    metrics = own_copies({"largest": Largest(), "accuracy": accuracy}, CPU)
    values = measure(metrics, torch.ones(2, 3), torch.zeros(2, dtype=torch.long))
    assert values == {"accuracy": 1.0}
    assert compute(metrics) == {"largest": 1.0}

    reset(metrics)

    assert math.isinf(compute(metrics)["largest"])


METRICS = {
    "plain": Largest,
    "torchmetrics": lambda: MulticlassF1Score(3, average="macro"),
    "mean": torchmetrics.MeanMetric,
    "collection": lambda: torchmetrics.MetricCollection(
        [MulticlassAccuracy(3), MulticlassF1Score(3)]
    ),
    "wrapped": lambda: torchmetrics.wrappers.MinMaxMetric(MulticlassAccuracy(3)),
    "listing": lambda: torchmetrics.CatMetric(),
}


def feed(name, metric, batch):
    output, target = batch
    metric.update(*((output[:, 0],) if name in ("mean", "listing") else (output, target)))


def value(metric):
    found = metric.compute()
    return {key: item.tolist() for key, item in found.items()} if isinstance(found, dict) else found


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_goes_on_from_its_state(name, tmp_path):
    whole, before, after = (METRICS[name]() for _ in range(3))
    for batch in batches()[:2]:
        feed(name, whole, batch)
        feed(name, before, batch)
    feed(name, after, batches()[2])  # is forgotten
    torch.save(metric_state(before), tmp_path / "state.pth")

    load_metric_state(after, torch.load(tmp_path / "state.pth", weights_only=True))
    for metric in (whole, after):
        feed(name, metric, batches()[2])

    one, other = value(after), value(whole)
    assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_a_metric_with_a_state_of_its_own_gives_and_takes_that():
    class Own(Largest):
        def state_dict(self):
            return {"mine": self.value}

        def load_state_dict(self, state):
            self.value = state["mine"]

    metric, other = Own(), Own()
    metric.update(torch.ones(2), None)

    load_metric_state(other, metric_state(metric))

    assert metric_state(metric) == {"mine": 1.0}
    assert other.compute() == 1.0
