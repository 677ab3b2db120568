"""Windows that several processes fill: weighed, skipped or vetoed by some of them, and no hang."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import danling as dl
from danling.callbacks import ModelCheckpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import Regression, die, weights
from tests.distributed.test_sharded import ByUser
from tests.optimization.test_windows import (
    Gradients,
    Language,
    Vetoing,
    assert_close,
    by_hand,
    make_batches,
    sum_of_losses,
    tokens,
)

pytestmark = pytest.mark.distributed

COUNTS = [7, 3, 5, 1, 6, 2, 4, 7, 1, 3, 9, 2]  # of 12 batches: rank r has every second one
SKIPPED = {1, 4, 5, 6, 8, 9, 11}  # 8 to 11 leave one batch, of rank 0


def plan(accumulation: int, size: int) -> list[list[int]]:
    """The batches of each window over all processes that were not skipped."""
    whole = accumulation * size
    starts = range(0, len(COUNTS), whole)
    return [
        [index for index in range(start, min(start + whole, len(COUNTS))) if index not in SKIPPED]
        for start in starts
    ]


def weighing(folder: Path, accumulation: int) -> None:
    rank = int(os.environ["RANK"])
    seen = Gradients()
    options = {"gradient_accumulation_steps": accumulation}
    runner = Language(
        {"accelerate": options},
        skips=lambda index: 2 * index + rank in SKIPPED,
        batches=make_batches(COUNTS),
        callbacks=[seen],
    )
    runner.train()
    loss = runner.results[0]["train"]["loss"]
    torch.save([seen.steps, seen.logged, weights(runner), loss], folder / f"seen-{rank}.pt")


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_window_that_weighs_samples_is_one_big_batch_of_all_processes(
    accumulation: int, tmp_path: Path
) -> None:
    succeed(2, weighing, tmp_path, accumulation, folder=tmp_path)

    windows = plan(accumulation, 2)
    gradients, losses, model = by_hand(windows, make_batches(COUNTS))
    ranks = [torch.load(tmp_path / f"seen-{rank}.pt") for rank in range(2)]
    for steps, logged, found, loss in ranks:
        held = [step for step, window in zip(steps, windows, strict=True) if window]
        assert_close(held, gradients)
        assert logged == pytest.approx(losses, rel=1e-6)
        expected = [value for p in model.parameters() for value in p.flatten().tolist()]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        counts = [sum(COUNTS[index] for index in window) for window in windows if window]
        mean = sum(a * b for a, b in zip(losses, counts, strict=True)) / sum(counts)
        assert loss == pytest.approx(mean, rel=1e-6)
    assert ranks[0][2] == ranks[1][2]


def averaging(folder: Path, accumulation: int) -> None:
    rank = int(os.environ["RANK"])
    options = {"gradient_accumulation_steps": accumulation}
    runner = Language(
        {"accelerate": options, "accumulate": "batches"},
        skips=lambda index: 2 * index + rank in SKIPPED,
        batches=make_batches(COUNTS),
    )
    runner.train()
    leave(folder, [weights(runner), runner.global_step])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_window_is_the_mean_of_what_all_processes_have_left(
    accumulation: int, tmp_path: Path
) -> None:
    succeed(2, averaging, tmp_path, accumulation, folder=tmp_path)

    from tests.optimization.test_windows import make_model

    model, batches = make_model(), make_batches(COUNTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    windows = plan(accumulation, 2)
    for window in windows:
        for index in window:
            loss = sum_of_losses(model, batches[index]) / tokens(batches[index])
            (loss / len(window)).backward()
        if window:
            optimizer.step()
            optimizer.zero_grad()
    expected = [value for p in model.parameters() for value in p.flatten().tolist()]
    for found, steps in results(tmp_path, 2):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert steps == len(windows)


def vetoing(folder: Path, where: str) -> None:
    rank = int(os.environ["RANK"])

    class Hook(dl.Callback):
        def on_before_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step == 2 and (where == "all" or runner.rank == 1):
                runner.skip_step()

    runner = Vetoing(
        {"accelerate": {"gradient_accumulation_steps": 1}},
        vetoed={2} if where == "step" and rank == 1 else (),
        batches=make_batches(COUNTS),
        callbacks=[Hook()] if where != "step" else [],
    )
    runner.train()
    leave(folder, [weights(runner), runner.global_step, runner.scheduler.last_epoch])


@pytest.mark.parametrize("where", ["step", "all"])
def test_a_step_is_vetoed_on_all_processes(where: str, tmp_path: Path) -> None:
    succeed(2, vetoing, tmp_path, where, folder=tmp_path)

    one, other = results(tmp_path, 2)
    assert one == other
    assert one[1:] == [6, 5]


def test_a_veto_that_only_one_process_knows_of_is_an_error(tmp_path: Path) -> None:
    ended = together(2, vetoing, tmp_path, "one", folder=tmp_path)

    assert 0 not in ended.codes
    assert not ended.timed_out
    assert "on some of the processes only" in ended.output


class Sharded(ByUser):
    """Its processes wait for each other's part of the weights in every forward."""

    def train_step(self, batch: Any) -> Any:
        loss = self.criterion(self.model(batch[0]), batch[1])
        if self.rank == 1 and self.batch_index == 1:
            return {"loss": loss, "n": 0} if self.config.accumulate == "samples" else None
        return {"loss": loss, "n": len(batch[0])}


def sharded(folder: Path, accumulate: str) -> None:
    options = {"gradient_accumulation_steps": 2}
    config = {"accumulate": accumulate, "max_epochs": 1, "accelerate": options}
    runner = Sharded(folder, config)
    runner.train()
    whole = [p.full_tensor().detach().flatten().tolist() for p in runner.model.parameters()]
    leave(folder, [value for values in whole for value in values])


def test_a_batch_cannot_be_skipped_where_weights_are_spread(tmp_path: Path) -> None:
    ended = together(2, sharded, tmp_path, "batches", folder=tmp_path)

    assert 0 not in ended.codes
    assert not ended.timed_out
    assert 'say that it weighs nothing, {"loss": loss, "n": 0}' in ended.output


def test_a_batch_weighs_nothing_where_weights_are_spread(tmp_path: Path) -> None:
    succeed(2, sharded, tmp_path, "samples", folder=tmp_path)

    plain = Regression(tmp_path, {"dataloader": {"batch_size": 4}})
    model = plain.model
    data = plain.loader("train").iterate(0)
    batches = list(data)  # the order of two processes is that of one
    for first in (0, 4):
        left = [batches[index] for index in range(first, first + 4) if index != 3]
        inputs, targets = (torch.cat(parts) for parts in zip(*left, strict=True))
        nn.functional.mse_loss(model(inputs), targets).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    expected = [value for p in model.parameters() for value in p.flatten().tolist()]
    for found in results(tmp_path, 2):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def interrupted(folder: Path, kill_at: int | None) -> None:
    rank = int(os.environ["RANK"])

    class Kill(dl.Callback):
        priority = 1000

        def on_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step == kill_at:
                die(runner)

    config = {
        "project_root": str(folder / "experiments"),
        "max_epochs": 3,
        "resume": "auto",
        "accelerate": {"gradient_accumulation_steps": 2},
    }
    runner = Vetoing(
        config,
        vetoed={4} if rank == 1 else (),
        skips=lambda index: 2 * index + rank in SKIPPED,
        batches=make_batches(COUNTS),
        callbacks=[ModelCheckpoint(every="1 step"), Kill()],
        default_callbacks=True,
    )
    runner.train()
    exact = runner.resume_report is None or runner.resume_report["exact"]
    leave(folder, [weights(runner), runner.results, runner.global_step, exact])


def test_windows_of_two_processes_go_on_after_a_kill(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    succeed(2, interrupted, whole, None, folder=whole)
    ended = together(2, interrupted, cut, 5, folder=cut)
    assert -signal.SIGKILL in ended.codes
    succeed(2, interrupted, cut, None, folder=cut)

    assert results(cut, 2) == results(whole, 2)
