"""What keeps several models, and modules besides them, equal on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danling as dl
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import Regression, network

pytestmark = pytest.mark.distributed


class Vetoed(Regression):
    """Two models with one optimizer, whose steps one of the processes vetoes now and then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"evaluate_every": None}, samples={"train": 48})
        self.model = {"first": network(), "second": nn.BatchNorm1d(1)}
        parameters = [p for model in self.model.values() for p in model.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        self.head = nn.Linear(1, 1)  # besides the models, and another on each process
        self.optimizer.add_param_group({"params": self.head.parameters()})

    def train_step(self, batch: Any) -> Tensor:
        inputs, targets = batch
        if self.rank == 1 and self.global_step in (3, 4):
            self.skip_step()
        output = self.head(self.model["second"](self.model["first"](inputs)))
        return nn.functional.mse_loss(output, targets)


class Moves(dl.Callback):
    """Writes down whether the weights of a step have moved."""

    def __init__(self) -> None:
        self.moved: list[bool] = []
        self._before: Tensor | None = None

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        now = torch.cat([p.detach().flatten() for p in runner.unwrapped_model.parameters()])
        if self._before is not None:
            self.moved.append(not torch.equal(self._before, now))
        self._before = now.clone()


def training(folder: Path) -> None:
    runner, moves = Vetoed(folder), Moves()
    runner.callbacks.append(moves)
    with torch.no_grad():
        runner.head.weight.add_(runner.rank)
    runner.train()
    state = {**runner.unwrapped_model.state_dict(), **runner.head.state_dict()}
    leave(folder, [moves.moved, {name: value.tolist() for name, value in state.items()}])


def test_a_veto_of_one_process_holds_for_all_and_everything_stays_equal(tmp_path: Path) -> None:
    succeed(2, training, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[0] == [step not in (3, 4) for step in range(1, 12)]


class Skipping(Vetoed):
    def train_step(self, batch: Any) -> Any:
        return None if self.rank else super().train_step(batch)


def skipping(folder: Path) -> None:
    runner = Skipping(folder)
    runner.train()


def test_a_batch_that_one_process_skips_is_refused_with_the_way_out(tmp_path: Path) -> None:
    ended = together(2, skipping, tmp_path, folder=tmp_path)

    assert any(ended.codes)
    assert not ended.timed_out
    assert "the step of a batch returned None on rank 1" in ended.output
    assert '{"loss": loss, "n": 0}' in ended.output


class Sparse(Regression):
    """A module besides the model that one process alone uses in a step, and nobody in another."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"evaluate_every": None}, samples={"train": 48})
        self.model = network()
        self.head = nn.Linear(1, 1, bias=False)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, weight_decay=0.5)

    def train_step(self, batch: Any) -> Tensor:
        inputs, targets = batch
        output = self.model(inputs)
        loss = nn.functional.mse_loss(output, targets)
        if self.rank == 0 and self.global_step % 2 == 0:
            loss = loss + 3.0 * self.head.weight.sum()
        return loss


class Seen(dl.Callback):
    """Writes down the gradient of the head in each step."""

    def __init__(self) -> None:
        self.gradients: list[float | None] = []

    def on_before_step(self, runner: Any) -> None:
        gradient = runner.head.weight.grad
        self.gradients.append(None if gradient is None else gradient.item())


def sparse(folder: Path) -> None:
    runner, seen = Sparse(folder), Seen()
    runner.callbacks.append(seen)
    runner.train()
    leave(folder, [seen.gradients, runner.head.weight.tolist()])


def test_a_gradient_that_one_process_alone_has_is_averaged_with_zeros(tmp_path: Path) -> None:
    """And where no process has one there is none: weight decay leaves the parameter alone."""
    succeed(2, sparse, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[0] == [1.5 if step % 2 == 0 else None for step in range(len(first[0]))]
    assert len(first[0]) >= 4
