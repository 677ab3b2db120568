"""Several models on two processes: equal on both, by DDP and by FSDP, killed and resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danling.callbacks import ModelCheckpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import Regression, network
from tests.distributed.test_sharded import ByAccelerate
from tests.support import gan
from tests.support.resume_harness import Kill, digest

pytestmark = pytest.mark.distributed

ON_TWO = {"dataloader": {"batch_size": gan.BATCH // 2}}


def training(folder: Path, kill_at: int | None = None) -> None:
    gan.train(folder, kill_at, ON_TWO)


def test_adversaries_are_equal_on_both_and_go_on_exactly_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    succeed(2, training, whole, folder=whole)
    ended = together(2, training, killed, 7, folder=killed)
    assert -signal.SIGKILL in ended.codes, ended.output
    succeed(2, training, killed, folder=killed)

    first, second = gan.outcome(whole, 0), gan.outcome(whole, 1)
    assert first["steps"] == 24
    assert first == second
    found = gan.outcome(killed, 0)
    assert found.pop("exact") is True
    assert first.pop("exact") is None
    assert found == first


# Other pairs


class Scaled(nn.Module):
    """Multiplies by a buffer, which a backward needs as it was in the forward."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 0.9))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


def teacher_of(student: nn.Module) -> nn.Module:
    torch.manual_seed(11)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), Scaled(), nn.Linear(8, 1)]
    teacher = nn.Sequential(*layers)
    return teacher.requires_grad_(False)


class StudentAndTeacher(Regression):
    """Learns from an average of its own weights, which no optimizer trains."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config, samples={"train": 48})
        student = teacher_of(network()).requires_grad_(True)
        self.model = {"student": student, "teacher": teacher_of(student)}
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    def train_step(self, batch: Any) -> Tensor:
        inputs, targets = batch
        with torch.no_grad():
            taught = self.model["teacher"](inputs)
        output = self.model["student"](inputs)
        other = self.model["student"](inputs.flip(0))  # a second forward in the step
        loss = nn.functional.mse_loss(output, targets) + nn.functional.mse_loss(output, taught)
        return loss + 0.1 * other.square().mean()

    def step(self, *args: Any, **keywords: Any) -> None:
        super().step(*args, **keywords)
        plain = self.unwrapped_model
        with torch.no_grad():
            for old, new in zip(
                plain["teacher"].parameters(), plain["student"].parameters(), strict=True
            ):
                old.lerp_(new, 0.1)


class ActorAndCritic(Regression):
    """Two models on one loss, with one optimizer for both."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config, samples={"train": 48})
        self.model = {"actor": network(), "critic": network()}
        parameters = [p for model in self.model.values() for p in model.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.02)

    def train_step(self, batch: Any) -> Tensor:
        inputs, targets = batch
        value = self.model["critic"](inputs)
        advantage = (targets - value).detach()
        loss = -(advantage * self.model["actor"](inputs)).mean()
        return loss + nn.functional.mse_loss(value, targets)


def pairs(folder: Path, kind: Any, batch_size: int) -> None:
    torch.set_num_threads(1)
    runner = kind(folder, {"evaluate_every": None, "dataloader": {"batch_size": batch_size}})
    runner.train()
    wrapped = [isinstance(model, DistributedDataParallel) for model in runner.model.values()]
    weights = {name: value.tolist() for name, value in runner.unwrapped_model.state_dict().items()}
    state = digest(runner.unwrapped_model.state_dict())
    leave(folder, [runner.global_step, wrapped, state, weights])


@pytest.mark.parametrize(
    ("kind", "wrapped"), [(StudentAndTeacher, [True, False]), (ActorAndCritic, [True, True])]
)
def test_pairs_are_equal_on_both(kind: Any, wrapped: list[bool], tmp_path: Path) -> None:
    succeed(2, pairs, tmp_path, kind, 4, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first[:2] == [12, wrapped]
    assert first[2] == second[2]


def test_models_on_two_processes_learn_as_on_one(tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        succeed(size, pairs, folder, ActorAndCritic, 8 // size, folder=folder)
        found.append(results(folder, size)[0][3])

    for name in found[0]:
        one, two = (torch.tensor(each[name]) for each in found)
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


# In parts


class StaysSharding(Accelerator):  # type: ignore[misc]  # Accelerate has no types
    """Its state is made anew with each optimizer, and takes it for DDP where there is no GPU."""

    def prepare(self, *parts: Any, **options: Any) -> Any:
        if self.num_processes > 1:
            self.state.distributed_type = DistributedType.FSDP
        return super().prepare(*parts, **options)


class Sharded(ByAccelerate):
    """A generator and a critic of which each process has a part, and a teacher that all have."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(
            folder,
            config,
            samples={"train": 32},
            callbacks=[ModelCheckpoint(every="1 step")],
            default_callbacks=True,
        )
        self.model = {"first": network(), "second": network(), "teacher": network()}
        self.model["teacher"].requires_grad_(False)
        self.optimizer = {
            name: torch.optim.AdamW(self.model[name].parameters(), lr=0.05)
            for name in ("first", "second")
        }

    def make_accelerator(self) -> Accelerator:
        accelerator = super().make_accelerator()
        accelerator.__class__ = StaysSharding
        return accelerator

    def train(self) -> None:
        with self:
            for _ in self.epochs():
                for inputs, targets in self.batches():
                    with torch.no_grad():
                        taught = self.model["teacher"](inputs)
                    first = self.model["first"](inputs)
                    self.step(nn.functional.mse_loss(first, targets + taught), "first")
                    second = self.model["second"](inputs)
                    self.step(nn.functional.mse_loss(second, first.detach()), "second")


def sharding(folder: Path, kill_at: int | None, size: int) -> None:
    torch.set_num_threads(1)
    config = {"max_epochs": 1, "resume": "auto", "dataloader": {"batch_size": 8 // size}}
    runner = Sharded(folder, config)
    runner.callbacks.append(Kill(kill_at))
    runner.train()
    state = runner.unwrapped_model.state_dict()
    weights = {name: whole(value) for name, value in state.items()}
    sharded = {name.split(".")[0] for name, value in state.items() if hasattr(value, "full_tensor")}
    exact = None if runner.resume_report is None else runner.resume_report["exact"]
    leave(folder, [runner.global_step, sorted(sharded), exact, weights])


def whole(value: Any) -> Any:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()


def test_sharded_models_are_killed_and_go_on_exactly_and_learn_as_on_one_process(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / name for name in ("one", "whole", "killed")]
    for folder in folders:
        folder.mkdir()
    one, undisturbed, killed = folders
    succeed(1, sharding, one, None, 1, folder=one)
    succeed(2, sharding, undisturbed, None, 2, folder=undisturbed)
    ended = together(2, sharding, killed, 5, 2, folder=killed)
    assert -signal.SIGKILL in ended.codes, ended.output
    succeed(2, sharding, killed, None, 2, folder=killed)

    first, second = results(undisturbed, 2)
    assert first == second
    assert first[:3] == [8, ["first", "second"], None]
    again = results(killed, 2)[0]
    assert again[2] is True
    assert again[3] == first[3]
    alone = results(one, 1)[0][3]
    for name, value in alone.items():
        found = torch.tensor(first[3][name])
        assert torch.allclose(torch.tensor(value), found, rtol=1e-4, atol=1e-6)
