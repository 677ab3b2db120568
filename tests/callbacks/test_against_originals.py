"""The same inputs give what the original gives, of which the others are beside their callbacks.

`EarlyStopping` on 200 sequences: test_early_stopping. `EMAWeightAveraging` and `WeightAveraging`:
test_weight_averaging. `GradientClipping`: test_gradient_clipping. `ModelPruning`:
test_model_pruning. `GradientAccumulationScheduler`: test_gradient_accumulation_scheduler, and here.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from danling.callbacks import (
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from danling.runner.accelerate import AccelerateRunner
from danling.testing import TinyRunner


@pytest.mark.parametrize("strategy", ["linear", "cos"])
def test_stochastic_weight_averaging_is_torch_s(strategy):
    """A loop as torch's documentation has it, on the same batches."""
    epochs, start, annealing, rate = 6, 2, 3, 0.03
    ours = TinyRunner(
        {"max_epochs": epochs},
        callbacks=[
            StochasticWeightAveraging(
                rate, start, annealing_epochs=annealing, annealing_strategy=strategy
            )
        ],
    )
    twin = TinyRunner({"max_epochs": epochs})
    model: Any = twin.model
    average: Any = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    annealed: Any = None
    rates: list[float] = []
    for epoch in range(epochs):
        if epoch == start:
            annealed = SWALR(optimizer, rate, annealing, strategy)
        for points, target in twin.loader("train").iterate(epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            nn.functional.cross_entropy(model(points), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch >= start:
            average.update_parameters(model)
            annealed.step()
    used: list[float] = []
    ours.callbacks.append(
        LambdaCallback(on_before_step=lambda r: used.append(r.optimizer.param_groups[0]["lr"]))
    )
    ours.train()

    assert used == pytest.approx(rates)
    assert torch.allclose(ours.model.weight, model.weight, atol=1e-6)
    saved = ours.state_dict()["model"]["weight"]
    assert torch.allclose(saved, average.module.weight, atol=1e-6)


def fitted(lightning: Any, module: Any, loader: Any, **arguments: Any) -> Any:
    """A trainer of Lightning that writes nothing."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(**quiet, **arguments)
        trainer.fit(module, loader)
    return trainer


def module_of(lightning: Any, model: nn.Module, counts: list[int]) -> Any:
    class Module(lightning.LightningModule):  # type: ignore[misc]  # no types here
        def __init__(self):
            super().__init__()
            self.model, self.lr = model, 0.1

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def on_train_epoch_end(self):
            counts.append(self.trainer.global_step)

    return Module()


@pytest.mark.parametrize("seed", range(4))
def test_the_steps_of_random_accumulation_schedules_are_lightning_s(seed):
    lightning: Any = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import GradientAccumulationScheduler as Theirs

    chance = random.Random(seed)
    samples, epochs = chance.randrange(9, 40), 5
    scheduling = {epoch: chance.randrange(1, 6) for epoch in chance.sample(range(epochs), 3)}
    counts: list[int] = []
    ours = TinyRunner({"max_epochs": epochs}, samples=samples)
    loader = DataLoader(ours.datasets["train"], batch_size=4)
    module = module_of(lightning, nn.Linear(4, 3), counts)
    fitted(lightning, module, loader, max_epochs=epochs, callbacks=[Theirs(scheduling)])
    found: list[int] = []
    ours.callbacks.append(GradientAccumulationScheduler(scheduling))
    ours.callbacks.append(
        LambdaCallback(on_epoch_end=lambda runner: found.append(runner.global_step))
    )
    ours.train()

    assert found == counts, (samples, scheduling)


@pytest.mark.parametrize("mode", ["exponential", "linear"])
@pytest.mark.parametrize("seed", range(5))
def test_the_learning_rate_that_is_suggested_is_lightning_s(seed, mode):
    lightning: Any = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import LearningRateFinder as Theirs

    torch.manual_seed(seed)
    points = torch.randn(240, 4)
    data = TensorDataset(points, points[:, :3].argmax(1))
    batches: Any = list(DataLoader(data, batch_size=8))
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    twin = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    twin.load_state_dict(model.state_dict())
    search: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 10.0, "mode": mode}
    theirs = Theirs(num_training_steps=60, update_attr=False, **search)
    fitted(
        lightning,
        module_of(lightning, twin, []),
        DataLoader(batches, batch_size=None),
        max_steps=1,
        callbacks=[theirs],
    )
    finder = LearningRateFinder(num_training_steps=60, update_attr=False, **search)
    AccelerateRunner(
        {"seed": 0, "max_steps": 1, "evaluate_every": None},
        model=model,
        criterion=nn.functional.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        dataloaders={"train": batches},
        callbacks=[finder],
        default_callbacks=False,
    ).train()

    expected: Any = theirs.optimal_lr
    assert finder.results["lr"] == pytest.approx(expected.results["lr"])
    assert finder.results["loss"] == pytest.approx(expected.results["loss"], rel=1e-4)
    assert finder.suggestion() == pytest.approx(expected.suggestion())
