"""Keys of the configuration that nobody reads are named once."""

from __future__ import annotations

from typing import Any

import pytest

import danling as dl
from danling.testing import TinyRunner


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line.removeprefix("nobody has read ") for line in lines if "nobody has read" in line]


def test_a_key_like_a_well_known_one_is_named_before_the_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []

    class Start(dl.Callback):
        def on_epoch_start(self, runner: Any) -> None:
            seen.append(len(told(caplog)))

    runner = TinyRunner({"batch_size": 32, "width": 3, "max_epochs": 2}, callbacks=[Start()])
    runner.train()
    runner.config.max_epochs = 3
    runner.train()

    assert seen == [1, 2, 2]
    assert told(caplog) == [
        "config.batch_size (did you mean 'dataloader.batch_size'?)",
        "config.width",
    ]


def test_what_a_step_or_a_callback_reads_is_read(caplog: pytest.LogCaptureFixture) -> None:
    class Reading(TinyRunner):
        def train_step(self, batch: Any) -> Any:
            return super().train_step(batch) * self.config.optim.scale

        def evaluate_step(self, batch: Any) -> Any:
            assert self.config.temperature == 2
            return super().evaluate_step(batch)

    config = {"optim": {"scale": 0.5, "unused": 1}, "temperature": 2, "max_epochs": 1}
    runner = Reading(config)
    runner.metrics = {}
    runner.train()

    assert told(caplog) == ["config.optim.unused"]


def test_a_training_whose_keys_are_all_well_known_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"max_grad_norm": 1.0, "log_interval": 2, "monitor": "val/accuracy"}
    loaders = {"batch_size": 4, "train": {"num_workers": 0}}
    TinyRunner(settings | {"monitor_mode": "max", "dataloader": loaders}).train()

    assert told(caplog) == []
