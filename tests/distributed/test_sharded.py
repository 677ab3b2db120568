"""Weights of which each process holds a part, on CPUs: torch and Accelerate can shard there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from danling.callbacks import ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import At, Regression, die, network, normalised_network
from tests.support.closing import SAM

pytestmark = pytest.mark.distributed


class ShardedByUser(Accelerator):  # type: ignore[misc]  # Accelerate has no types
    """Takes the model as it is."""

    def prepare_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.num_processes == 1:
            return super().prepare_model(model, *args, **kwargs)
        self._models.append(model)
        return model


def sharded_network() -> nn.Module:
    model = network()
    size = int(os.environ["WORLD_SIZE"])
    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for layer in (model[0], model[2]):  # type: ignore[index]  # it is a Sequential
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


class ByUser(Regression):
    def __init__(self, folder: Path, config: dict[str, Any], **parts: Any) -> None:
        super().__init__(folder, config, model=sharded_network, **parts)

    def make_accelerator(self) -> Accelerator:
        return ShardedByUser(cpu=True)


def sharded_at_the_root() -> nn.Module:
    """A forward without a backward leaves the parameters of the root whole."""
    model = network()
    size = int(os.environ["WORLD_SIZE"])
    if size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model


class AtTheRoot(ByUser):
    def __init__(self, folder: Path, config: dict[str, Any], **parts: Any) -> None:
        super().__init__(folder, config, **parts)
        self.model = sharded_at_the_root()


class AtTheRootInOneFile(AtTheRoot):
    def __init__(self, folder: Path, config: dict[str, Any], **parts: Any) -> None:
        super().__init__(folder, {**config, "state_dict_type": "full"}, **parts)


class ByAccelerate(Regression):
    """Accelerate asks for GPUs before it shards, and needs none."""

    version = 2

    def make_accelerator(self) -> Accelerator:
        accelerator = Accelerator(cpu=True)
        if accelerator.num_processes > 1:
            accelerator.state.distributed_type = DistributedType.FSDP
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=self.version,
                auto_wrap_policy="SIZE_BASED_WRAP",
                min_num_params=8,
                cpu_ram_efficient_loading=False,
            )
        return accelerator


Kind = Callable[..., Regression]


def make(kind: Kind, folder: Path, batch_size: int = 4, **config: Any) -> Regression:
    settings = {"dataloader": {"batch_size": batch_size}, "max_grad_norm": 0.5, **config}
    runner = kind(
        folder,
        settings,
        samples={"train": 32, "val": 13, "small": 1},
        callbacks=[ModelCheckpoint(every="1 step")],
        default_callbacks=True,
    )
    runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.05)
    return runner


def training(folder: Path, kind: Kind, batch_size: int, config: dict[str, Any]) -> None:
    runner = make(kind, folder, batch_size, **config)
    if "resume" in config and not list(folder.glob("experiments/*/run.json")):
        runner.callbacks.append(At("on_step", die, step=7))
    runner.train()
    is_sharded = any(isinstance(part, DTensor) for part in runner.model.parameters())
    predictions = runner.predict("val").flatten().tolist()
    leave(folder, [runner.results, predictions, runner.global_step, is_sharded])
    if "resume" in config:
        leave(folder, [runner.results, runner.resume_report])


def trained(folder: Path, size: int, kind: Kind, **config: Any) -> tuple[Any, dict[str, Any]]:
    """What each process has found, and the last checkpoint."""
    folder.mkdir(exist_ok=True)
    succeed(size, training, folder, kind, 8 // size, config, folder=folder)
    (path,) = folder.glob("experiments/*/checkpoints/latest.pth")
    return results(folder, size), read_checkpoint(path)


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        ByUser,
        ByAccelerate,
        AtTheRoot,
        pytest.param(AtTheRootInOneFile, marks=pytest.mark.exhaustive),
    ],
)
def test_a_sharded_run_is_that_of_one_process(kind: Kind, tmp_path: Path) -> None:
    """13 and 1 samples: the ranks have unequally many batches, and one has none at all."""
    ((expected, outputs, *_),), whole = trained(tmp_path / "alone", 1, kind)

    several, saved = trained(tmp_path / "several", 2, kind)

    for found, predictions, steps, is_sharded in several:
        assert (steps, is_sharded) == (8, True)
        assert_close(predictions, outputs)
        assert_close(found, expected)
    assert_close(saved["model"], whole["model"])
    assert_close(saved["optimizer"], whole["optimizer"])


@pytest.mark.parametrize("kind", [ByAccelerate, pytest.param(ByUser, marks=pytest.mark.exhaustive)])
def test_a_sharded_run_that_was_killed_goes_on_exactly(kind: Kind, tmp_path: Path) -> None:
    ((expected, *_), _), whole = trained(tmp_path / "undisturbed", 2, kind)
    killed = tmp_path / "killed"
    killed.mkdir()
    together(2, training, killed, kind, 4, {"resume": "auto"}, folder=killed)
    assert len(list(killed.glob("experiments/*/checkpoints/latest.pth"))) == 1

    ((found, report), _), saved = trained(killed, 2, kind, resume="auto")

    assert (report["exact"], report["global_step"]) == (True, 6)
    assert found == expected
    assert str(saved["model"]) == str(whole["model"])
    assert str(saved["optimizer"]) == str(whole["optimizer"])


def loading(folder: Path, kind: Kind, path: Path) -> None:
    runner = make(kind, folder, elastic=True)
    runner.load_checkpoint(path)
    with runner:
        saved = read_checkpoint(runner.save_checkpoint())
    expected = read_checkpoint(path)
    torch.testing.assert_close(saved["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(saved["optimizer"], expected["optimizer"], rtol=0, atol=0)
    leave(folder, [runner.global_step, runner.evaluate("val")["loss"]])


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), (1, 2), pytest.param(2, 3, marks=pytest.mark.exhaustive)]
)
def test_another_number_of_processes_takes_the_same_checkpoint(
    before: int, after: int, tmp_path: Path
) -> None:
    found, _ = trained(tmp_path / "first", before, ByAccelerate)
    (path,) = tmp_path.glob("first/experiments/*/checkpoints/latest.pth")

    succeed(after, loading, tmp_path, ByAccelerate, path, folder=tmp_path)

    for steps, loss in results(tmp_path, after):
        assert steps == 8
        assert loss == pytest.approx(found[0][0][-1]["val"]["loss"], rel=1e-5)


def normalising(folder: Path) -> None:
    """One process evaluates the weights that several have trained, if there are any."""
    parts: dict[str, Any] = {"samples": {"train": 32, "val": 13}, "model": normalised_network}
    runner = ByAccelerate(folder, callbacks=[ModelCheckpoint()], default_callbacks=True, **parts)
    if saved := list(folder.glob("experiments/*/checkpoints/latest.pth")):
        runner.load_checkpoint(saved[0], strict=False)
    else:
        runner.train()
    leave(folder, [runner.evaluate("val")["loss"], runner.predict("val").tolist()])


def test_batch_norm_is_evaluated_with_the_statistics_that_are_saved(tmp_path: Path) -> None:
    succeed(2, normalising, tmp_path, folder=tmp_path)
    several = results(tmp_path, 2)

    succeed(1, normalising, tmp_path, folder=tmp_path)

    (alone,) = results(tmp_path, 1)
    for found in several:
        assert_close(found, alone)


def keeping(folder: Path) -> None:
    runner = ByAccelerate(folder, {})
    runner.optimizer = torch.optim.LBFGS(runner.model.parameters())
    runner.train()


def test_an_optimizer_that_keeps_the_whole_parameters_is_refused(tmp_path: Path) -> None:
    ended = together(2, keeping, tmp_path, folder=tmp_path)

    assert 0 not in ended.codes
    assert "the optimizer, LBFGS, keeps a list of its parameters, which were" in ended.output


class Climbing(ByAccelerate):
    """Evaluates each batch twice."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config, samples={"train": 32})
        self.optimizer = SAM(self.model.parameters(), lr=0.05, momentum=0.9)


def climbing(folder: Path, batch_size: int) -> None:
    runner = Climbing(folder, {"dataloader": {"batch_size": batch_size}, "evaluate_every": None})
    runner.train()
    weights = [p.detach() for p in runner.unwrapped_model.parameters()]
    whole = [w.full_tensor() if isinstance(w, DTensor) else w for w in weights]
    leave(folder, [isinstance(weights[0], DTensor), [w.tolist() for w in whole]])


def test_a_step_with_two_backward_passes_is_as_on_one_process(tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        succeed(size, climbing, folder, 8 // size, folder=folder)
        found.append(results(folder, size)[0])

    assert [sharded for sharded, _ in found] == [False, True]
    for alone, several in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(torch.tensor(alone), torch.tensor(several), rtol=1e-4, atol=1e-6)


class OfTheFirstVersion(ByAccelerate):
    version = 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OfTheFirstVersion, "the first version of FSDP is not supported"),
    ],
)
def test_an_engine_that_would_hide_its_state_is_refused_before_training(
    kind: Kind, message: str, tmp_path: Path
) -> None:
    ended = together(2, training, tmp_path, kind, 4, {}, folder=tmp_path)

    assert 0 not in ended.codes
    assert message in ended.output
    assert "--fsdp_version 2" in ended.output
