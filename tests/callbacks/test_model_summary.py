from __future__ import annotations

import pytest
from torch import nn

from danling.callbacks.model_summary import ModelSummary, summarize
from danling.errors import CallbackError
from danling.testing import CallbackContract


def model() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))


def names(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_the_depth_says_how_far_down_the_table_goes():
    assert names(summarize(model(), 1)) == ["(model)", "0", "1"]
    assert names(summarize(model(), 2)) == ["(model)", "0", "0.0", "0.1", "1"]
    assert names(summarize(model(), -1)) == names(summarize(model(), 2))


def test_shared_parameters_are_counted_once():
    tied = nn.Module()
    tied.embedding = nn.Embedding(10, 4)
    tied.head = nn.Linear(4, 10, bias=False)
    tied.head.weight = tied.embedding.weight

    assert summarize(tied).splitlines()[1].split() == ["(model)", "Module", "40", "40"]


def test_what_is_frozen_is_not_trainable():
    frozen = model()
    frozen[0].requires_grad_(False)

    assert summarize(frozen).splitlines()[1].split()[2:] == ["58", "18"]


@pytest.mark.parametrize("depth", [0, -2, 1.5, True])
def test_a_depth_that_cannot_be_meant_is_an_error_at_once(depth):
    with pytest.raises(CallbackError, match="positive, or -1"):
        ModelSummary(depth)


class TestContract(CallbackContract):
    def make(self):
        return ModelSummary()
