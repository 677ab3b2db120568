"""The data of a runner by split: what is assigned is used, and where loaders are is kept."""

from __future__ import annotations

import pytest
import torch

from danling.config import Config
from danling.data.prepare import Placement
from danling.data.splits import Splits
from danling.distributed.world import World
from danling.errors import DataError


def make(**config: object) -> Splits:
    settings = {"seed": 0, "dataloader": {"batch_size": 2}} | config
    splits = Splits(Config(settings), World(), Placement(torch.device("cpu")))
    splits.datasets = {"train": [0.0, 1.0, 2.0, 3.0], "val": [4.0], "test": [5.0]}
    return splits


def test_a_training_evaluates_all_but_train_and_test():
    splits = make()
    splits.dataloaders["aux"] = [torch.ones(2)]

    assert splits.names == ["train", "val", "test", "aux"]
    assert splits.evaluation_names == ["val", "aux"]


def test_a_split_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(DataError, match=r"'vla'.*did you mean 'val'"):
        make().loader("vla")


def test_a_loader_is_made_once_and_anew_for_other_data_or_settings():
    splits = make()
    first = splits.loader("train")
    assert splits.loader("train") is first

    splits.datasets["train"] = [0.0] * 6
    second = splits.loader("train")
    assert second is not first
    assert second.length == 3

    splits._config.dataloader = {"batch_size": 3}
    assert splits.loader("train").length == 2


def test_the_loaders_that_training_used_go_on_where_they_were():
    splits, other = make(), make()
    batches = [batch.tolist() for batch in splits.take_up("train").iterate(0)]

    reasons = other.load_state_dict(splits.state_dict(0, {"train": 1}))

    assert reasons == []
    assert [batch.tolist() for batch in other.take_up("train").iterate(0, 1)] == batches[1:]
    assert list(splits.state_dict(0, {})) == ["train"]
