from __future__ import annotations

import logging
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danling.errors import DataError, MetricError
from danling.metrics.logbook import checked_scalar
from danling.runner.steps import SampleCounter, forward, predict, read_output, sample_count
from danling.testing import TinyRunner

Pair = namedtuple("Pair", "input target")


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor | None = None


# What a step returns


LOSS = torch.tensor(0.5)


@pytest.mark.parametrize(
    "output", [LOSS, LOSS.reshape(1, 1), {"loss": LOSS}, Output(LOSS), UserDict(loss=LOSS)]
)
def test_a_loss_is_found_in_whatever_a_step_returns(output):
    loss, metrics, samples = read_output(output)

    assert torch.equal(loss, LOSS)
    assert loss.ndim == 0
    assert dict(metrics) == {}
    assert samples is None


def test_a_mapping_carries_metrics_and_the_number_of_samples():
    output = {
        "loss": LOSS,
        "n": 12,
        "accuracy": torch.tensor(0.25),
        "perplexity": 3.5,
        "correct": True,
        "logits": torch.zeros(4, 3),
        "text": "a b",
        "nothing": None,
    }

    _, metrics, samples = read_output(output)

    assert set(metrics) == {"accuracy", "perplexity", "correct"}
    assert samples == 12


def test_a_number_of_samples_on_the_device_stays_there():
    _, _, samples = read_output({"loss": LOSS, "n": torch.tensor([True, False, True]).sum()})

    assert isinstance(samples, Tensor)
    assert samples == 2


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "the step returned NoneType: return a scalar loss, a mapping with 'loss'"),
        ((LOSS, LOSS), "the step returned tuple"),
        (0.5, "the step returned float"),
        (Output(None), "the step returned Output"),
        ({"los": LOSS}, "a mapping without a 'loss' (it has 'los')"),
        ({"loss": None, "logits": LOSS}, "a mapping without a 'loss' (it has 'loss', 'logits')"),
        ({}, "a mapping without a 'loss' (it has nothing)"),
        ({"loss": 0.5}, "the loss is a float, not a tensor: keep it a tensor, without .item()"),
        (torch.zeros(8), "the loss has shape (8,): reduce it to a scalar, as with .mean()"),
        ({"loss": torch.zeros(2, 3)}, "the loss has shape (2, 3)"),
        (torch.zeros(0), "the loss has shape (0,)"),
        ({"loss": LOSS, "n": "all"}, "'n' is the number of samples, not a str"),
    ],
)
def test_what_is_no_scalar_loss_is_refused_with_what_it_is(output, message):
    with pytest.raises(MetricError) as raised:
        read_output(output)

    assert message in str(raised.value)


@pytest.mark.parametrize("step", ["train_step", "evaluate_step"])
def test_a_step_that_returns_no_scalar_ends_the_run_with_that(step):
    runner = TinyRunner()
    setattr(runner, step, lambda batch: runner.model(batch[0]).sum(1))

    with pytest.raises(MetricError, match=r"the loss has shape \(4,\)"):
        runner.train()

    assert runner.status == "failed"


# How many samples a batch holds


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(3)), 5),
        ([torch.zeros(5, 2)], 5),
        ({"x": torch.zeros(5, 2), "y": torch.zeros(3)}, 5),
        (UserDict(x=torch.zeros(5)), 5),
        (OrderedDict(name="a", x=torch.zeros(5)), 5),
        (Pair(torch.zeros(5), torch.zeros(5)), 5),
        (("label", {"x": [torch.zeros(5)]}), 5),
        ((torch.tensor(0.5), torch.zeros(5)), 5),
        ((torch.zeros(0, 2), torch.zeros(0)), 0),
        ("text", 0),
        (b"bytes", 0),
        (7, 0),
        ((), 0),
        (object(), 0),
    ],
)
def test_a_batch_has_as_many_samples_as_its_tensors_have_rows(batch, count):
    assert sample_count(batch) == count


class Graphs:
    num_graphs = 3
    batch_size = 7

    def to(self, device):
        return self


IMAGES = [torch.zeros(3, 5, 5), torch.zeros(3, 9, 2), torch.zeros(3, 1, 1), torch.zeros(3, 4, 4)]
BOXES = [{"boxes": torch.zeros(size, 4)} for size in (2, 7, 1, 3)]
PACKED = nn.utils.rnn.pack_sequence([torch.zeros(5, 2), torch.zeros(2, 2)])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((IMAGES, BOXES), 4),
        ([IMAGES, BOXES], 4),
        ((tuple(IMAGES), tuple(BOXES)), 4),
        (BOXES, 4),
        (Graphs(), 3),
        ((Graphs(), torch.zeros(3, 2)), 3),
        ((PACKED, torch.zeros(2)), 2),
        (["a", "b", "c"], 3),
        ({"text": ["a", "b", "c"], "label": torch.zeros(3)}, 3),
        (([torch.zeros(6, 2), torch.zeros(6, 3)], torch.zeros(6)), 6),
        ({"x": torch.zeros(6, 2), "scale": torch.tensor(2.0)}, 6),
    ],
)
def test_a_batch_of_another_kind_says_how_many_samples_it_holds(batch, count, caplog):
    counter = SampleCounter()

    assert sample_count(batch) == counter(batch, logging.getLogger("steps")) == count
    assert not caplog.records


@pytest.mark.parametrize(
    "batch",
    [
        {"edge_index": torch.zeros(2, 9), "y": torch.zeros(4)},
        (torch.zeros(10, 4, 8), torch.zeros(4)),
        {"image": torch.zeros(3, 8, 8), "pixels": torch.zeros(64)},
    ],
)
def test_a_batch_that_contradicts_itself_is_told_of_once(batch, caplog):
    counter, logger = SampleCounter(), logging.getLogger("steps")

    counts = {counter(batch, logger) for _ in range(5)}

    assert counts == {next(iter(batch.values() if isinstance(batch, dict) else batch)).shape[0]}
    (record,) = caplog.records
    assert 'returns the number as "n"' in record.getMessage()


@pytest.mark.parametrize("batch", [7, None, object(), torch.tensor(0.5), "text"])
def test_a_batch_that_says_nothing_counts_once(batch, caplog):
    assert SampleCounter()(batch, logging.getLogger("steps")) == 1
    assert not caplog.records


# The default step


def test_a_pair_goes_through_the_model_and_the_criterion():
    model = nn.Linear(2, 1)
    points, target = torch.randn(4, 2), torch.randn(4, 1)
    expected = nn.functional.mse_loss(model(points), target)

    for batch in ((points, target), [points, target], Pair(points, target)):
        assert torch.equal(forward(model, nn.MSELoss(), batch, {}), expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, 2), "the batch is a Tensor, not (input, target) and not a mapping"),
        ((torch.zeros(4, 2),), "the batch is a tuple of 1, not (input, target)"),
        ([1, 2, 3], "the batch is a list of 3, not (input, target)"),
    ],
)
def test_a_batch_of_another_shape_needs_an_own_step(batch, message):
    with pytest.raises(DataError) as raised:
        forward(nn.Linear(2, 1), nn.MSELoss(), batch, {})

    assert message in str(raised.value)
    assert "override train_step" in str(raised.value)


def test_a_pair_without_a_criterion_says_what_to_pass():
    with pytest.raises(MetricError, match="there is no criterion: pass `criterion=`"):
        forward(nn.Linear(2, 1), None, (torch.zeros(1, 2), torch.zeros(1, 1)), {})


class Encoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, labels=None) -> Any:
        loss = None if labels is None else (x - labels).pow(2).mean()
        return self.kind(loss=loss, logits=x)


@pytest.mark.parametrize("kind", [Output, dict])
def test_a_mapping_goes_to_the_model_as_keywords(kind):
    batch = {"x": torch.ones(3), "labels": torch.zeros(3)}
    seen = []

    def metric(output, target):
        seen.append((output, target))
        return torch.tensor(0.5)

    plain = forward(Encoder(kind), None, batch, {})
    measured = forward(Encoder(kind), None, batch, {"half": metric})

    assert read_output(plain)[0] == read_output(measured)[0] == 1.0
    assert read_output(measured)[1] == {"half": 0.5}
    assert torch.equal(seen[0][0], batch["x"])
    assert seen[0][1] is batch["labels"]
    assert torch.equal(predict(Encoder(kind), batch), batch["x"])


@pytest.mark.parametrize("kind", [Output, dict])
@pytest.mark.parametrize("metrics", [{}, {"half": lambda output, target: 0.5}])
def test_a_model_that_gives_no_loss_is_told_so(kind, metrics):
    with pytest.raises(MetricError, match="loss"):
        read_output(forward(Encoder(kind), None, {"x": torch.ones(3)}, metrics))


@pytest.mark.parametrize("batch", [torch.ones(4, 2), (torch.ones(4, 2), 0), [torch.ones(4, 2)]])
def test_a_prediction_needs_no_target(batch):
    model = nn.Linear(2, 1)

    assert torch.equal(predict(model, batch), model(torch.ones(4, 2)))


# What is logged


def test_a_logged_value_is_kept_as_it_was():
    weight = nn.Parameter(torch.tensor(1.0))

    kept = checked_scalar("x", weight)
    with torch.no_grad():
        weight.add_(1)

    assert kept == 1.0
    assert not kept.requires_grad
    assert checked_scalar("x", 3) == 3.0
    assert checked_scalar("x", "0.5") == 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"log('x'): the tensor has shape (2,), log a scalar"),
        ("high", "log('x'): a str is no number"),
        (None, "log('x'): a NoneType is no number"),
    ],
)
def test_what_cannot_be_logged_is_refused(value, message):
    with pytest.raises(MetricError) as raised:
        checked_scalar("x", value)

    assert str(raised.value) == message
