from __future__ import annotations

import copy
import math

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from danling import Callback
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


@pytest.mark.parametrize("name", ["loss", "n", "output"])
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


def test_an_object_that_gives_more_than_a_vector_is_refused():
    with pytest.raises(MetricError, match=r"'table' gave shape \(3, 3\): reduce it"):
        train_with({"table": MulticlassConfusionMatrix(3)})


class PerClass:
    """The number of samples of each of three classes."""

    def __init__(self):
        self.reset()

    counts: Tensor

    def update(self, output, target):
        self.counts = self.counts + torch.bincount(target, minlength=3)

    def compute(self):
        return self.counts

    def reset(self):
        self.counts = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize("make", [PerClass, lambda: MulticlassAccuracy(3, average=None)])
@pytest.mark.parametrize("names", [None, ["cat", "dog", "fish"]])
def test_a_vector_is_logged_by_class(make, names):
    metric, rows = make(), []
    if names is not None:
        metric.class_names = names

    class Rows(Callback):
        def on_log(self, runner, metrics):
            rows.append(metrics)

    runner = TinyRunner({"monitor": f"val/each/{(names or '012')[1]}"}, callbacks=[Rows()])
    runner.metrics = {"each": metric}
    runner.train()

    alone = make()
    with torch.no_grad():
        for input, target in runner.loader("val", evaluating=True).iterate(0):
            alone.update(runner.model(input), target)
    values = dict(zip(names or "012", alone.compute().tolist(), strict=True))
    expected = {f"each/{name}": value for name, value in values.items()}
    result = runner.results[-1]["val"]
    assert {name: result[name] for name in result if name != "loss"} == expected
    assert runner.latest_score == result[f"each/{(names or '012')[1]}"]
    logged = {tag for row in rows for tag in row}
    assert {f"{split}/{name}" for name in expected for split in ("train", "val")} <= logged


def test_a_function_with_named_classes_gives_one_mean_for_each():
    def share(output, target):
        return torch.bincount(target, minlength=3) / len(target)

    share.class_names = ["a", "b", "c"]  # type: ignore[attr-defined]  # functions may have some
    runner = train_with({"share": share})

    targets = runner.datasets["val"].tensors[1]
    shares = (torch.bincount(targets, minlength=3) / len(targets)).tolist()
    result = runner.results[0]["val"]
    assert [result[f"share/{name}"] for name in "abc"] == pytest.approx(shares, rel=1e-6)
    share.class_names = ["a", "b"]  # type: ignore[attr-defined]
    with pytest.raises(MetricError, match="'share' gave 3 values, and class_names has 2"):
        train_with({"share": share})


def test_vectors_in_a_mapping_and_lists_are_spread_too():
    class Several(Largest):
        def compute(self):
            return {"each": torch.tensor([1.0, 2.0]), "list": [3.0, 4.0], "one": 5.0}

    result = train_with({"m": Several()}).results[0]["val"]

    expected = {"m/each/0": 1.0, "m/each/1": 2.0, "m/list/0": 3.0, "m/list/1": 4.0, "m/one": 5.0}
    assert {name: result[name] for name in result if name != "loss"} == expected


# Which metrics are computed


class Strict(Largest):
    """Cannot be computed before it was updated, as AUROC."""

    def compute(self):
        if math.isinf(self.value):
            raise RuntimeError("no samples were seen")
        return self.value


@pytest.mark.parametrize("make", [Strict, BinaryAUROC, lambda: MetricCollection([BinaryAUROC()])])
def test_a_metric_that_nobody_has_updated_is_not_computed(make):
    class Own(TinyRunner):
        def train_step(self, batch):
            return self.criterion(self.model(batch[0]), batch[1])

        def evaluate_step(self, batch):
            output = self.model(batch[0])
            if self.evaluations != 1:  # not in the second one
                for metric in self.metrics_of("val").values():
                    metric.update(output[:, 0].sigmoid(), batch[1].clamp(max=1))
            return self.criterion(output, batch[1])

    runner = Own({"max_epochs": 3, "evaluate_every": "1 epoch"})
    runner.metrics = {"late": make()}
    seen = []

    class Skip(Callback):
        def on_evaluate_end(self, runner, split, result):
            seen.append(sorted(result))

    runner.callbacks.append(Skip())
    runner.train()

    assert [set(result["train"]) for result in runner.results] == [{"loss"}] * 3
    assert [len(names) for names in seen] == [2, 1, 2]
    assert all("loss" in names for names in seen)


def test_a_metric_that_is_updated_to_its_first_value_is_computed():
    class Zero(Largest):
        def update(self, output, target):
            pass

    result = train_with({"zero": Zero()}).results[0]

    assert math.isinf(result["val"]["zero"])
    assert math.isinf(result["train"]["zero"])


def test_later_updates_of_a_metric_are_its_own():
    metric = own_copies({"largest": Largest()}, CPU)["largest"]
    assert "update" in vars(metric)
    metric.update(torch.ones(2), None)

    assert "update" not in vars(metric)
    assert "update" not in metric_state(metric)
    reset({"largest": metric})
    assert "update" not in metric_state(metric)
    assert vars(copy.deepcopy(metric))["update"].metric is not metric


# Metrics of one split


def test_a_split_has_metrics_of_its_own_beside_the_common_ones():
    runner = train_with({"accuracy": accuracy, "val": {"largest": Largest()}})

    assert runner.results
    for result in runner.results:
        assert set(result["train"]) == {"loss", "accuracy"}
        assert set(result["val"]) == {"loss", "accuracy", "largest"}
    assert set(runner.evaluate("test")) == {"loss", "accuracy"}


def test_metrics_of_a_split_that_there_is_no_data_for_are_refused():
    with pytest.raises(MetricError, match=r"metrics\['vall'\] is a mapping.*did you mean 'val'"):
        train_with({"vall": {"largest": Largest()}})
    with pytest.raises(MetricError, match="a metric cannot be named 'loss'"):
        train_with({"val": {"loss": Largest()}})


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

    assert math.isinf(metrics["largest"].compute())
    assert compute(metrics) == {}


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
