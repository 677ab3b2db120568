from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import GradientAccumulationScheduler, LambdaCallback
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


class TestContract(CallbackContract):
    changes_training = True

    def make(self):
        return GradientAccumulationScheduler({0: 2, 1: 1})


def test_the_steps_of_an_epoch_are_those_of_its_number():
    steps: list[int] = []
    keep = LambdaCallback(on_epoch_end=lambda runner: steps.append(runner.global_step))
    scheduler = GradientAccumulationScheduler({1: 4, 2: 3})
    runner = TinyRunner({"max_epochs": 4}, callbacks=[scheduler, keep])

    assert runner.total_steps == 4 + 1 + 2 + 2
    runner.train()
    assert steps == [4, 5, 7, 9]
    assert runner.progress == 1.0


def test_the_configuration_holds_before_the_first_epoch_that_is_given():
    config = {"max_epochs": 2, "accelerate": {"gradient_accumulation_steps": 2}}
    runner = TinyRunner(config, callbacks=[GradientAccumulationScheduler({1: 4})])
    runner.train()

    assert runner.global_step == 2 + 1
    assert TinyRunner(config).accum_steps == 2


def test_the_steps_are_as_many_as_lightning_s():
    lightning: Any = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import GradientAccumulationScheduler as Theirs

    scheduling, counts = {0: 1, 1: 4, 3: 2}, []

    class Module(lightning.LightningModule):  # type: ignore[misc]  # no types here
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_epoch_end(self):
            counts.append(self.trainer.global_step)

    data = TinyRunner().datasets["train"]
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=5,
            accelerator="cpu",
            callbacks=[Theirs(scheduling)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Module(), loader)
    ours: list[int] = []
    keep = LambdaCallback(on_epoch_end=lambda runner: ours.append(runner.global_step))
    scheduler = GradientAccumulationScheduler(scheduling)
    TinyRunner({"max_epochs": 5}, callbacks=[scheduler, keep]).train()

    assert ours == counts


@pytest.mark.parametrize("scheduling", [{}, {0: 0}, {-1: 2}, {0: 1.5}, {"0": 1}, 4])
def test_what_cannot_be_meant_is_an_error(scheduling: Any):
    with pytest.raises(CallbackError, match="GradientAccumulationScheduler"):
        GradientAccumulationScheduler(scheduling)
