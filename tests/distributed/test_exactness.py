"""Several processes give the numbers that one gives."""

from __future__ import annotations

import math
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import danling as dl
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import Numbered, Regression, normalised_network, numbers, weights

pytestmark = pytest.mark.distributed


class Largest:
    """A metric with state that can be merged."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.value = -math.inf

    def update(self, output: Tensor, target: Tensor) -> None:
        self.value = max(self.value, float(target.max()))

    def merge_state(self, others: list[Largest]) -> None:
        self.value = max([self.value, *(other.value for other in others)])

    def compute(self) -> float:
        return self.value


def mean_of_targets(output: Tensor, target: Tensor) -> Tensor:
    return target.mean()


# Metrics and predictions


def measuring(folder: Path, samples: int) -> None:
    from torchmetrics import MeanMetric
    from torchmetrics.regression import MeanAbsoluteError, SpearmanCorrCoef

    class Targets(MeanMetric):
        def update(self, output: Tensor, target: Tensor) -> None:
            super().update(target)

    class Flat(SpearmanCorrCoef):
        def update(self, output: Tensor, target: Tensor) -> None:
            super().update(output.flatten(), target.flatten())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all samples
        rank = Flat()
    metrics = {
        "mean": mean_of_targets,
        "largest": Largest(),
        "targets": Targets(),
        "mae": MeanAbsoluteError(),
        "rank": rank,
    }
    runner = Regression(
        folder,
        {"dataloader": {"batch_size": 8}},
        samples={"train": 8, "test": samples},
        metrics=metrics,
    )
    result = runner.evaluate("test")
    predictions = runner.predict("test")
    leave(folder, [result, predictions.flatten().tolist()])


@pytest.mark.parametrize(
    ("size", "samples"),
    [
        (2, 101),
        (3, 2),  # fewer than processes
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [(2, 2), (2, 9), (2, 16), (3, 9), (3, 16), (3, 101)]
        ),
    ],
)
def test_metrics_and_predictions_are_those_of_one_process(
    size: int, samples: int, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    succeed(1, measuring, alone, samples, folder=alone)
    ((expected, outputs),) = results(alone, 1)

    succeed(size, measuring, tmp_path, samples, folder=tmp_path)

    targets = Numbered(samples).targets.double().numpy()
    assert expected["mean"] == pytest.approx(np.mean(targets), rel=1e-6)
    for result, predictions in results(tmp_path, size):
        assert result == pytest.approx(expected, rel=1e-6, nan_ok=True)
        assert predictions == pytest.approx(outputs, rel=1e-6)


class Unmergeable:
    def update(self, output: Tensor, target: Tensor) -> None: ...

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None: ...


def measuring_in_vain(folder: Path) -> None:
    Regression(folder, metrics={"mine": Unmergeable()}).train()


def test_a_metric_that_cannot_be_merged_is_refused_before_training(tmp_path: Path) -> None:
    ended = together(2, measuring_in_vain, tmp_path, folder=tmp_path)

    assert 0 not in ended.codes
    assert "the metric 'mine' (Unmergeable) cannot be merged over several processes" in ended.output


# Training


class Recorder(dl.Callback):
    """Norms and learning rates of each step, and the samples of each batch."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.rates: list[float] = []
        self.samples: list[list[int]] = []

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.samples.append(numbers(batch))

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        self.norms.append(float(runner.grad_norm))

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.rates.append(runner.optimizer.param_groups[0]["lr"])


def training(folder: Path, batch_size: int, accumulation: int, interval: str) -> None:
    recorder = Recorder()
    config = {
        "dataloader": {"batch_size": batch_size},
        "accelerate": {"gradient_accumulation_steps": accumulation},
        "max_grad_norm": 0.5,
        "scheduler_interval": interval,
    }
    runner = Regression(folder, config, samples={"train": 40}, callbacks=[recorder])
    runner.scheduler = torch.optim.lr_scheduler.LambdaLR(runner.optimizer, lambda n: 0.9**n)
    runner.train()
    losses = [[result["train"]["loss"], result["val"]["loss"]] for result in runner.results]
    outcome = [weights(runner), recorder.norms, losses, recorder.rates, runner.global_step]
    leave(folder, [outcome, recorder.samples])


def trained(folder: Path, size: int, *args: Any) -> tuple[list[Any], list[list[list[int]]]]:
    """What came of a training, and which samples each rank saw in each batch."""
    folder.mkdir()
    succeed(size, training, folder, *args, folder=folder)
    found = results(folder, size)
    for outcome, _ in found:
        assert outcome == found[0][0]  # no difference at all between ranks
    return found[0][0], [samples for _, samples in found]


@pytest.mark.parametrize(
    ("size", "accumulation", "interval"),
    [(2, 1, "step"), (2, 3, "step"), (2, 1, "epoch"), (3, 2, "step")],
)
def test_training_with_the_same_global_batch_is_that_of_one_process(
    size: int, accumulation: int, interval: str, tmp_path: Path
) -> None:
    # 40 samples in global batches of 12: of the last one there are 4, two for each of two ranks
    samples = 12 if size == 2 else 10 * size
    one, (alone,) = trained(tmp_path / "one", 1, samples, accumulation, interval)

    several, shares = trained(tmp_path / "some", size, samples // size, accumulation, interval)

    if size == 2:
        batches = [[*chain(*parts)] for parts in zip(*shares, strict=True)]
        assert batches == alone  # of rank 0 the first half of each batch, of rank 1 the second
        for mine, theirs in zip(several[:3], one[:3], strict=True):
            assert np.ravel(mine) == pytest.approx(np.ravel(theirs), rel=1e-4, abs=1e-6)
    assert several[3] == pytest.approx(one[3])  # the learning rate of every step
    assert several[4] == one[4]


def normalising(folder: Path) -> None:
    config, samples = {"evaluate_every": None}, {"one": 1}
    runner = Regression(folder, config, samples=samples, model=normalised_network)
    with runner:
        for _ in runner.epochs():
            for index, batch in enumerate(runner.batches()):
                runner.step(runner.train_step(batch))
                if index == 1:
                    first, again = runner.evaluate("val"), runner.evaluate("val")
                    assert first == again
                    runner.evaluate("one")  # of which only one rank has a batch
    buffers = [tensor.flatten().tolist() for tensor in runner.unwrapped_model.buffers()]
    leave(folder, [runner.evaluate("val"), runner.predict("val").tolist(), buffers[-1]])


@pytest.mark.parametrize("size", [2, 3])
def test_batch_norm_is_evaluated_with_the_statistics_of_rank_0(size: int, tmp_path: Path) -> None:
    """13 samples in batches of 4: unequally many per rank, where a forward that syncs hangs."""
    succeed(size, normalising, tmp_path, folder=tmp_path)

    found = results(tmp_path, size)
    assert [result[:2] for result in found] == [found[0][:2]] * size


def drawing(folder: Path) -> None:
    start = torch.rand(1).item()
    runner = Regression(folder, model=lambda: nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)))
    initial = weights(runner)
    masks = []

    class Masks(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            masks.append(torch.rand(1).item())

    runner.callbacks.append(Masks())
    runner.train()
    leave(folder, [start, initial, masks, weights(runner)])


def test_ranks_begin_with_equal_weights_and_draw_different_dropout(tmp_path: Path) -> None:
    succeed(2, drawing, tmp_path, folder=tmp_path)

    (_, initial_0, masks_0, weights_0), (_, initial_1, masks_1, weights_1) = results(tmp_path, 2)
    assert initial_0 == initial_1
    assert not set(masks_0) & set(masks_1)
    assert weights_0 == weights_1
