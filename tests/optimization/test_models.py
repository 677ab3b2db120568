"""Several models as one module: their names, what is plain, and which of them train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from danling.errors import RunError
from danling.optimization.models import Models, as_models, begin_training, parts_of


def pair() -> dict[str, nn.Module]:
    return {"first": nn.Linear(2, 1), "second": nn.Dropout()}


def test_a_mapping_is_several_models_and_anything_else_stays() -> None:
    models, single = pair(), nn.ModuleDict(pair())

    found = as_models(models)

    assert isinstance(found, Models)
    assert parts_of(found) == list(models.values())
    assert as_models(found) is found
    assert as_models(single) is single
    assert parts_of(single) == [single]
    assert as_models(None) is None
    assert parts_of(None) == []


def test_what_is_wrapped_has_a_plain_counterpart_that_is_no_part_of_it() -> None:
    models = pair()
    wrapped = {name: nn.Sequential(model) for name, model in models.items()}

    found = Models(wrapped, lambda model: model[0])

    assert list(found.plain.values()) == list(models.values())
    assert found.plain is found.plain
    assert list(found.state_dict()) == ["first.0.weight", "first.0.bias"]
    assert list(found.plain.state_dict()) == ["first.weight", "first.bias"]
    assert Models(models).plain["first"] is models["first"]


def test_the_whole_is_never_called() -> None:
    with pytest.raises(RunError, match=r"several models, \['first', 'second'\]"):
        Models(pair())(torch.ones(1, 2))


def test_what_is_trained_begins_in_training_mode() -> None:
    models = Models(pair()).eval()
    single = nn.Sequential(nn.Linear(1, 1), nn.Dropout().eval())

    begin_training(models, models["first"].parameters())
    begin_training(single, [])

    assert [model.training for model in models.values()] == [True, False]
    assert not single[1].training  # a part in evaluation mode is there on purpose
    begin_training(models, [])  # where nothing is known of them, all are
    assert models["second"].training
