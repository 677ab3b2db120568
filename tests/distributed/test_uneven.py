"""Processes with unequally much data: counted exactly, ended together, or refused; never a hang."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.utils.data import DataLoader

import danling as dl
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import Numbered, Regression, numbers

pytestmark = pytest.mark.distributed

Batches = Iterator[tuple[Tensor, Tensor]]


def batched(samples: int, size: int = 2) -> Batches:
    data = Numbered(samples)
    for start in range(0, samples, size):
        yield data.inputs[start : start + size], data.targets[start : start + size]


def mean_of_targets(output: Tensor, target: Tensor) -> Tensor:
    return target.mean()


def measuring(folder: Path, samples: int, stream: bool, drop_last: bool) -> None:
    settings = {"batch_size": 8, "drop_last": drop_last}
    loaders = {"test": lambda: batched(samples, 8)} if stream else {}
    runner = Regression(
        folder,
        {"dataloader": {"batch_size": 4} if stream else {"test": settings, "train": settings}},
        samples={"train": 48, "test": samples},
        metrics={"mean": mean_of_targets},
        dataloaders=loaders,
    )
    if stream:
        del runner.datasets["test"]
    leave(folder, [runner.evaluate("test")["mean"], len(runner.predict("test"))])


@pytest.mark.parametrize(
    ("size", "samples", "stream", "drop_last", "counted"),
    [
        (2, 101, True, False, 101),  # 13 batches, of which one rank gets 7
        (2, 101, False, True, 96),  # of six whole batches of 16
        pytest.param(3, 101, True, False, 101, marks=pytest.mark.exhaustive),
        pytest.param(3, 8, True, False, 8, marks=pytest.mark.exhaustive),  # one batch for all
        pytest.param(3, 101, False, True, 96, marks=pytest.mark.exhaustive),
    ],
)
def test_means_are_over_the_samples_and_over_each_once(
    size: int, samples: int, stream: bool, drop_last: bool, counted: int, tmp_path: Path
) -> None:
    succeed(size, measuring, tmp_path, samples, stream, drop_last, folder=tmp_path)

    targets = Numbered(samples).targets.double().numpy()[:counted]
    for mean, predictions in results(tmp_path, size):
        assert mean == pytest.approx(np.mean(targets), rel=1e-6)
        assert predictions == counted


KINDS: dict[str, Any] = {
    "datasets": lambda more: {"samples": {"train": 20 + more, "val": 8}},
    "lists": lambda more: {"dataloaders": {"val": [*batched(20 + more)]}},
    "loaders": lambda more: {"dataloaders": {"train": DataLoader(Numbered(20 + more), 4)}},
}


def training_on_unequal_data(folder: Path, kind: str) -> None:
    Regression(folder, **KINDS[kind](8 * int(os.environ["RANK"]))).train()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("datasets", "'train' differ (20 on rank 0, 28 on rank 1)"),
        ("lists", "'val' differ (10 on rank 0, 14 on rank 1)"),
        ("loaders", "'train' differ (20 on rank 0, 28 on rank 1)"),
    ],
)
def test_data_that_differs_between_ranks_is_refused_with_both_lengths(
    kind: str, message: str, tmp_path: Path
) -> None:
    ended = together(2, training_on_unequal_data, tmp_path, kind, folder=tmp_path)

    assert 0 not in ended.codes
    assert message in ended.output


class Recorder(dl.Callback):
    """The samples of each batch."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.samples.append(numbers(batch))


def streaming(folder: Path, sharded: bool) -> None:
    def batches() -> Iterable[Any]:
        return batched(20 + (4 * int(os.environ["RANK"]) if sharded else 0))

    recorder = Recorder()
    config = {"log_interval": 3}
    loaders = {"train": batches, "val": batches}
    runner = Regression(folder, config, callbacks=[recorder], dataloaders=loaders)
    runner.datasets = {}
    runner.train()
    leave(folder, [recorder.samples, runner.global_step, runner.results])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_stream_of_unknown_length_ends_on_all_ranks_together(
    sharded: bool, tmp_path: Path
) -> None:
    succeed(2, streaming, tmp_path, sharded, folder=tmp_path)

    (first, steps_0, results_0), (second, steps_1, results_1) = results(tmp_path, 2)
    assert steps_0 == steps_1 == len(first) == len(second) == 10
    assert results_0 == results_1
    if not sharded:
        assert sorted(chain(*first[:5], *second[:5])) == list(range(20))
