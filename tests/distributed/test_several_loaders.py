"""Several loaders on several processes: as many batches on each, each sample once, and a kill."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import danling as dl
from danling.callbacks import ModelCheckpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import At, Numbered, die, network, numbers, weights

pytestmark = pytest.mark.distributed

MODES = ["min_size", "max_size", "max_size_cycle", "sequential"]
SAMPLES = {"a": 14, "b": 33}


class Both(dl.AccelerateRunner):
    """A regression on two splits together."""

    def __init__(self, folder: Path, mode: str, under_train: bool, **parts: Any) -> None:
        config: dict[str, Any] = {
            "project_root": str(folder / "experiments"),
            "seed": 0,
            "max_epochs": 2,
            "resume": "auto",
            "accelerate": {"cpu": True, "gradient_accumulation_steps": 2},
            "dataloader": {"batch_size": 2},
        }
        if under_train:
            config["dataloader"]["train"] = {"mode": mode}
        super().__init__(config, **parts)
        data = {name: Numbered(samples) for name, samples in SAMPLES.items()}
        self.datasets = {"train": data} if under_train else data
        dl.seed_everything(self.config)
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.mode, self.under_train = mode, under_train
        self.seen: list[dict[str, list[int]]] = []

    def train_step(self, batch: Any) -> Any:
        given = {name: part for name, part in batch.items() if part is not None}
        self.seen.append({name: numbers(part) for name, part in given.items()})
        losses = [nn.functional.mse_loss(self.model(x), y) for x, y in given.values()]
        return {"loss": torch.stack(losses).sum(), "n": 1}

    def fit(self) -> None:
        if self.under_train:
            self.train()
            return
        with self:
            for _ in self.epochs():
                for batch in self.batches("a", "b", mode=self.mode):
                    self.step(self.train_step(batch))


def reading(folder: Path, mode: str, under_train: bool, kill_at: int | None) -> None:
    callbacks: list[dl.Callback] = [ModelCheckpoint(every="1 step")]
    if kill_at is not None:
        callbacks.append(At("on_step", die, step=kill_at))
    runner = Both(folder, mode, under_train, callbacks=callbacks)
    runner.fit()
    exact = runner.resume_report is None or runner.resume_report["exact"]
    last = runner.seen[len(runner.seen) // 2 :] if kill_at is None else []
    leave(folder, [weights(runner), runner.results, runner.global_step, exact, last])


@pytest.mark.parametrize("under_train", [False, True], ids=["loop", "train"])
@pytest.mark.parametrize("mode", MODES)
def test_several_loaders_are_shared_and_go_on_after_a_kill(
    mode: str, under_train: bool, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    succeed(2, reading, whole, mode, under_train, None, folder=whole)
    ended = together(2, reading, cut, mode, under_train, 3, folder=cut)
    assert -signal.SIGKILL in ended.codes
    succeed(2, reading, cut, mode, under_train, None, folder=cut)

    one, other = results(whole, 2)
    assert [found[:4] for found in results(cut, 2)] == [one[:4], other[:4]]
    assert one[3] is True
    batches = {"min_size": 4, "max_size": 9, "max_size_cycle": 9, "sequential": 13}[mode]
    assert one[2] == 2 * -(-batches // 2)
    assert len(one[4]) == len(other[4]) == batches
    longest = "a" if mode == "min_size" else "b"
    seen = [
        sample for part in (one, other) for batch in part[4] for sample in batch.get(longest, ())
    ]
    assert set(seen) == set(range(SAMPLES[longest]))
