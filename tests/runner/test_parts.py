"""What a runner trains with: placing, loaders by split, lengths, seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import danling as dl
from danling.distributed.launch import make_world
from danling.errors import ConfigError, DataError, MetricError

DATA = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.zeros(10, 1))


def make(config: dict[str, object] | None = None, **parts: Any) -> dl.AccelerateRunner:
    settings = {"seed": 0, "accelerate": {"cpu": True}, **(config or {})}
    return dl.AccelerateRunner(settings, default_callbacks=False, **parts)


def test_train_is_shuffled_and_the_others_are_not() -> None:
    runner = make({"dataloader": {"batch_size": 10}}, datasets={"train": DATA, "val": DATA})

    (train,) = runner.loader("train").iterate(0)
    (val,) = runner.loader("val").iterate(0)

    assert not torch.equal(train[0], DATA.tensors[0])
    assert torch.equal(train[0].sort(dim=0).values, DATA.tensors[0])
    assert torch.equal(val[0], DATA.tensors[0])


def test_settings_of_a_split_win_over_those_of_all() -> None:
    settings = {"batch_size": 5, "train": {"batch_size": 2, "drop_last": True}}
    runner = make({"dataloader": settings}, datasets={"train": DATA, "val": DATA})

    assert runner.batch_size == 2
    assert runner.batches_per_epoch == 5
    assert runner.loader("val").batch_size == 5


def test_an_unknown_setting_of_a_loader_names_the_nearest() -> None:
    runner = make({"dataloader": {"batch_sise": 2}}, datasets={"train": DATA})

    with pytest.raises(DataError, match="did you mean 'batch_size'"):
        runner.loader("train")


def test_a_missing_split_names_those_that_there_are() -> None:
    runner = make(datasets={"train": DATA, "val": DATA})

    with pytest.raises(DataError, match="did you mean 'val'"):
        runner.evaluate("vall")


def test_lengths_follow_from_data_accumulation_and_limits() -> None:
    config = {
        "max_epochs": 3,
        "dataloader": {"batch_size": 2},
        "accelerate": {"cpu": True, "gradient_accumulation_steps": 2},
    }
    runner = make(config, datasets={"train": DATA})

    assert (runner.accum_steps, runner.batches_per_epoch, runner.steps_per_epoch) == (2, 5, 3)
    assert runner.total_steps == 9
    assert runner.batch_size_equivalent == 4
    assert runner.progress == 0.0


def test_a_length_that_nobody_knows_is_none() -> None:
    runner = make({"max_epochs": 3}, dataloaders={"train": iter([])})

    assert runner.total_steps is None
    assert math.isnan(runner.progress)


def test_test_is_no_split_that_a_training_evaluates() -> None:
    runner = make(
        datasets={"train": DATA, "val": DATA, "test": DATA},
        dataloaders={"extra": DataLoader(DATA)},
    )

    assert runner.splits == ["train", "val", "test", "extra"]
    assert runner.evaluation_splits == ["val", "extra"]


def test_an_option_that_accelerate_has_not_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"config\.accelerate"):
        make({"accelerate": {"mixed_precission": "bf16"}})


def test_a_scheduler_needs_an_optimizer_of_its_name() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    runner = make(model=model, optimizer={"a": optimizer}, scheduler={"b": schedule})

    with pytest.raises(ConfigError, match="'b'"):
        runner.prepare()


def test_a_metric_must_be_a_function_or_accumulate() -> None:
    runner = make(datasets={"train": DATA}, metrics={"accuracy": 3})

    with pytest.raises(MetricError, match="'accuracy'"):
        runner.metrics_of("train")


def test_a_missing_seed_is_drawn_and_recorded() -> None:
    runner = dl.AccelerateRunner({"accelerate": {"cpu": True}}, default_callbacks=False)

    assert isinstance(runner.config.seed, int)
    assert runner.config.drawn_seed


def test_a_runner_works_on_a_copy_of_the_config() -> None:
    config = dl.Config(seed=1, max_epochs=2)

    runner = dl.AccelerateRunner(config, default_callbacks=False)
    config.max_epochs = 9

    assert runner.config.max_epochs == 2
    assert "epoch" not in config


def test_a_second_runner_may_have_another_precision() -> None:
    first = make()
    second = make({"accelerate": {"cpu": True, "mixed_precision": "bf16"}})

    assert first.accelerator is not second.accelerator
    assert second.accelerator.mixed_precision == "bf16"


def test_processes_that_would_each_train_on_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="2 processes were launched, and Accelerate sees 1"):
        make_world(accelerator)
