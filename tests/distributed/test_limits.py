"""Limits of a training on several processes: equal on all of them, and after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danling as dl
from danling.callbacks import ModelCheckpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import At, Numbered, Regression, die, numbers, weights

pytestmark = pytest.mark.distributed


class Samples(dl.Callback):
    """The numbers of the samples of each epoch."""

    def __init__(self) -> None:
        self.by_epoch: dict[int, list[list[int]]] = {}

    @property
    def epochs(self) -> list[list[list[int]]]:
        return list(self.by_epoch.values())

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.by_epoch.setdefault(runner.epoch, []).append(numbers(batch))


def limited(folder: Path, config: dict[str, Any], stop_at: int | None) -> None:
    samples = Samples()
    callbacks: list[dl.Callback] = [samples]
    if stop_at is not None:
        callbacks.append(At("on_step", lambda runner: runner.stop("enough"), step=stop_at))
    runner = Regression(folder, {"poll_interval": 1, **config}, callbacks=callbacks)
    runner.train()
    counts = [runner.global_step, runner.total_steps, runner.epoch]
    leave(folder, [samples.epochs, counts, runner.results, weights(runner)])


@pytest.mark.parametrize(
    ("config", "stop_at", "counts"),
    [
        ({"limit_batches": {"train": 3, "val": 1}}, None, [6, 6, 2]),
        ({"limit_batches": {"train": 0.5}}, None, [4, 4, 2]),
        ({"overfit_batches": 2}, None, [4, 4, 2]),
        ({"fast_dev_run": 2}, None, [2, 2, 1]),
        ({"evaluate_at_start": True, "evaluate_every": "0.5 epoch"}, None, [8, 8, 2]),
        ({"min_steps": 6}, 2, [6, 8, 1]),
        ({"min_epochs": 1}, 2, [4, 8, 1]),
        ({}, 2, [2, 8, 0]),
    ],
)
def test_limits_are_the_same_on_all_processes(
    config: dict[str, Any], stop_at: int | None, counts: list[int], tmp_path: Path
) -> None:
    succeed(2, limited, tmp_path, config, stop_at, folder=tmp_path)

    one, other = results(tmp_path, 2)
    assert one[1] == other[1] == counts
    assert one[2:] == other[2:]
    for epoch in zip(one[0], other[0], strict=True):
        seen = [sample for part in epoch for batch in part for sample in batch]
        assert len(seen) == len(set(seen))
    if "overfit_batches" in config:
        assert one[0][0] == one[0][1]
    if "evaluate_at_start" in config:
        assert [r["global_step"] for r in one[2] if "val" in r] == [0, 2, 4, 6, 8]


class Stream:
    """Batches of one sample, of those of a data set again and again; it knows where it is."""

    def __init__(self, end: int) -> None:
        self.data, self.position = Numbered(end), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.position < len(self.data):
            self.position += 1
            input, target = self.data[self.position - 1]
            yield input[None], target[None]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Dreaming(dl.AccelerateRunner):
    """Trains on what each process makes up."""

    def __init__(self, folder: Path, config: dict[str, Any], callbacks: list[dl.Callback]) -> None:
        config = {"seed": 0, "max_steps": 6, "accelerate": {"cpu": True}, **config}
        config |= {"project_root": str(folder / "experiments")}
        super().__init__(config, callbacks=callbacks)
        dl.seed_everything(self.config)
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def train_step(self, batch: None) -> Tensor:
        return self.model(torch.randn(5, 3)).pow(2).mean()


def lasting(folder: Path, kind: str, kill_at: int | None) -> None:
    samples = Samples()
    callbacks: list[dl.Callback] = [ModelCheckpoint(every="1 step")]
    if kill_at is not None:
        callbacks.append(At("on_step", die, step=kill_at))
    config: dict[str, Any] = {"resume": "auto"}
    runner: dl.AccelerateRunner
    if kind == "nothing":
        runner = Dreaming(folder, config, callbacks)
    else:
        config |= {"limit_batches": {"train": 3}, "max_epochs": 3, "evaluate_at_start": True}
        config |= {"min_steps": 8}
        runner = Regression(folder, config, callbacks=[samples, *callbacks], default_callbacks=True)
        if kind == "stream":
            runner.dataloaders = {"train": Stream(9)}
    runner.train()
    exact = runner.resume_report is None or runner.resume_report["exact"]
    last = samples.epochs[-1:] if kind == "stream" else []
    leave(folder, [weights(runner), runner.results, runner.global_step, exact, last])


@pytest.mark.parametrize("kind", ["stream", "indexed", "nothing"])
def test_a_limited_training_goes_on_after_a_kill(kind: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    succeed(2, lasting, whole, kind, None, folder=whole)
    for step in (2, 5):
        ended = together(2, lasting, cut, kind, step, folder=cut)
        assert -signal.SIGKILL in ended.codes
    succeed(2, lasting, cut, kind, None, folder=cut)

    assert results(cut, 2) == results(whole, 2)
    if kind == "stream":  # 9 batches a pass, of which each process gets every second one of 8
        expected = [[[4], [6], [0]], [[5], [7], [1]]]
        assert [result[4][0] for result in results(whole, 2)] == expected


def both_keep_nothing(folder: Path) -> None:
    config = {"fast_dev_run": True, "project_root": str(folder / "runs")}
    runner = Regression(folder, config, default_callbacks=True)
    runner.train()
    leave(folder, str(runner.dir.parent))


def test_a_trial_run_of_several_processes_keeps_nothing(tmp_path: Path) -> None:
    succeed(2, both_keep_nothing, tmp_path, folder=tmp_path)

    one, other = results(tmp_path, 2)
    assert one == other
    assert not os.path.exists(one)
    assert not (tmp_path / "runs").exists()
