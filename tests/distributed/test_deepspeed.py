"""DeepSpeed's ZeRO by Accelerate, on CPUs: numbers, hooks, checkpoints, and what is refused."""

from __future__ import annotations

import errno
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedType
from torch import nn

import danling as dl
from danling.callbacks import GradientNormMonitor, ModelCheckpoint, ModelSummary, TensorBoard
from danling.checkpoint.reading import read_checkpoint
from danling.checkpoint.sharded.deepspeed import weights_in
from danling.checkpoint.sharded.shards import directories
from danling.checkpoint.store import CheckpointStore
from danling.files.failpoints import set_failpoints
from tests.distributed.processes import (
    ROOT,
    accelerate_launch,
    free_port,
    leave,
    results,
    succeed,
    together,
)
from tests.distributed.runners import At, Regression, die, weights
from tests.distributed.test_shards import FullDisk

os.environ.setdefault("DS_ACCELERATOR", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    deepspeed = pytest.importorskip("deepspeed")
    pytest.importorskip("deepspeed.runtime.zero.muon.muon_optimizer")  # else in each process

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

STAGES = [1, 2, 3]
KEEP_NOTHING = {  # else each process keeps the weights of what is as small as these networks
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
PORTS = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


class Zero(Regression):
    """Accelerate wants a GPU for DeepSpeed, which needs none."""

    def __init__(self, folder: Path, stage: int, config: dict[str, Any], **options: Any) -> None:
        self.stage = stage
        self.file = options.pop("file", {})
        self.precision = options.pop("precision", "no")
        settings = {"dataloader": {"batch_size": 4}, "max_grad_norm": 0.5, **config}
        options.setdefault("samples", {"train": 32, "val": 13, "small": 1})
        super().__init__(folder, settings, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)

    def make_accelerator(self) -> Accelerator:
        if not self.stage:
            return Accelerator(cpu=True)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
        if "LOCAL_RANK" not in os.environ:  # as `accelerate launch` sets it for one process
            os.environ.update(PORTS, MASTER_PORT=str(free_port()))
        accelerator = Accelerator(cpu=True)
        if accelerator.num_processes == 1:
            torch.distributed.is_initialized() or torch.distributed.init_process_group("gloo")
        plugin = DeepSpeedPlugin(zero_stage=self.stage, zero3_init_flag=False)
        if self.stage == 3:
            plugin.deepspeed_config["zero_optimization"].update(KEEP_NOTHING)
        plugin.deepspeed_config.update(self.file)
        plugin.set_mixed_precision(self.precision)
        plugin._set_selected(True)
        accelerator.state.distributed_type = DistributedType.DEEPSPEED
        accelerator.state.deepspeed_plugins = plugin
        accelerator.deepspeed_engine_wrapped = None
        return accelerator


class Norms(dl.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        assert isinstance(runner.optimizer, torch.optim.Optimizer)
        rate = runner.optimizer.param_groups[0]["lr"]
        self.seen.append((runner.grad_norm.item(), rate))


def whole(runner: dl.AccelerateRunner) -> list[float]:
    """All weights, as numbers."""
    state = runner.optimization.model_state.state() or {}
    return [value for tensor in state.values() for value in tensor.double().flatten().tolist()]


def training(folder: Path, stage: int, batch_size: int, config: dict[str, Any]) -> None:
    norms = Norms()
    settings = {"dataloader": {"batch_size": batch_size}, **config}
    runner = Zero(folder, stage, settings, callbacks=[norms])
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    runner.train()
    predictions = runner.predict("val").flatten().tolist()
    small = runner.evaluate("small")["loss"]
    leave(folder, [runner.results, predictions, small, norms.seen, whole(runner)])


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one plain process finds."""
    folder = tmp_path_factory.mktemp("alone")
    succeed(1, training, folder, 0, 8, {}, folder=folder)
    return results(folder, 1)[0]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_is_that_of_one_process(
    stage: int, accumulation: int, alone: Any, tmp_path: Path
) -> None:
    """Clipped and scheduled; 13 and 1 samples: ranks have unequally many, or none at all."""
    config = {"accelerate": {"gradient_accumulation_steps": accumulation}}
    succeed(2, training, tmp_path, stage, 4 // accumulation, config, folder=tmp_path)

    main, other = results(tmp_path, 2)

    assert_close(main, alone)
    assert_close(other[:4], alone[:4])
    assert len({rate for _, rate in main[3]}) == 3


# Hooks


class Watch(dl.Callback):
    """What there is to see around a step."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.logged: set[str] = set()

    def on_log(self, runner: dl.AccelerateRunner, metrics: Any) -> None:
        self.logged.update(metrics)

    def on_before_step(self, runner: dl.AccelerateRunner) -> None:
        with pytest.raises(dl.RunError, match="after its step"):
            _ = runner.grad_norm
        self.seen.append(f"before {runner.model.global_steps}")

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.seen.append(f"after {runner.model.global_steps} {runner.grad_norm.item() > 0}")


def watching(folder: Path, stage: int) -> None:
    watch = Watch()
    config = {"accelerate": {"gradient_accumulation_steps": 2}, "max_epochs": 1}
    others = [GradientNormMonitor(per_layer=True), ModelSummary(), TensorBoard(histograms="1 step")]
    parts: dict[str, Any] = {"samples": {"train": 32}, "default_callbacks": True}
    runner = Zero(folder, stage, config, callbacks=[watch, *others], **parts)
    runner.train()
    leave(folder, [watch.seen, "optim/grad_norm" in watch.logged])


@pytest.mark.parametrize("stage", STAGES)
def test_hooks_fire_around_the_step_of_the_engine(stage: int, tmp_path: Path) -> None:
    succeed(2, watching, tmp_path, stage, folder=tmp_path)

    for seen, logged in results(tmp_path, 2):
        assert (seen, logged) == (["before 0", "after 1 True", "before 1", "after 2 True"], True)
    (log,) = tmp_path.glob("experiments/*/run.log")
    assert re.search(r"Sequential +49 +49\n", log.read_text())


class Unsized(torch.utils.data.IterableDataset[Any]):
    """Without a length: that the last window is short is known too late."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(3)
        for _ in range(10):
            yield torch.randn(4, 4, generator=generator), torch.randn(4, 1, generator=generator)


OFFLOADED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def rescaling(folder: Path, stage: int, file: dict[str, Any]) -> None:
    config = {"accelerate": {"gradient_accumulation_steps": 2}, "max_epochs": 2}
    norms = Norms()
    parts: dict[str, Any] = {"callbacks": [norms], "samples": {"val": 4}, "file": file}
    runner = Zero(folder, stage, config, **parts)
    runner.dataloaders = {"train": torch.utils.data.DataLoader(Unsized(), batch_size=None)}
    runner.train()
    leave(folder, [norms.seen, whole(runner)])


@pytest.mark.parametrize(("stage", "file"), [*((stage, {}) for stage in STAGES), (2, OFFLOADED)])
def test_a_short_last_window_is_averaged_over_what_it_has(
    stage: int, file: dict[str, Any], tmp_path: Path
) -> None:
    succeed(2, rescaling, tmp_path, 0, {}, folder=tmp_path)
    expected = results(tmp_path, 2)[0]
    assert len(expected[0]) == 6  # of 2, 2 and 1 batches on each process, twice

    succeed(2, rescaling, tmp_path, stage, file, folder=tmp_path)

    assert_close(results(tmp_path, 2)[0], expected)


def breaking(folder: Path, stage: int) -> None:
    """Leave an epoch in the middle of a window, whose gradients must not count."""
    config = {"accelerate": {"gradient_accumulation_steps": 2}, "max_epochs": 3}
    runner = Zero(folder, stage, config, samples={"train": 32})
    with runner:
        for epoch in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                if epoch == 0 and runner._batch is not None and runner._batch.has_gradients:
                    break
    leave(folder, [runner.global_step, whole(runner)])


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_a_window_that_was_left_are_forgotten(stage: int, tmp_path: Path) -> None:
    succeed(2, breaking, tmp_path, 0, folder=tmp_path)
    expected = results(tmp_path, 2)[0]

    succeed(2, breaking, tmp_path, stage, folder=tmp_path)

    assert_close(results(tmp_path, 2)[0], expected)


def halved(folder: Path, stage: int, precision: str) -> None:
    accelerator = deepspeed.accelerator.get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    norms = Norms()
    file = {"fp16": {"enabled": True, "initial_scale_power": 32}} if precision == "fp16" else {}
    runner = Zero(folder, stage, {}, callbacks=[norms], precision=precision, file=file)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 1, gamma=0.5)
    runner.train()
    skipped = runner.model.skipped_steps
    leave(folder, [norms.seen, skipped, str(runner.predict("val").dtype), runner.global_step])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_that_was_skipped_moves_no_schedule(
    precision: str, stage: int, tmp_path: Path
) -> None:
    succeed(2, halved, tmp_path, stage, precision, folder=tmp_path)

    for seen, skipped, kind, steps in results(tmp_path, 2):
        assert (kind, steps) == ("torch.float32", 8)
        assert (skipped > 0) == (precision == "fp16")
        moved = sum(norm != float("inf") for norm, _ in seen)
        assert (moved, len({rate for _, rate in seen})) == (8 - skipped, max(8 - skipped, 1))


# Checkpoints


def mixed_network() -> nn.Module:
    """With weights that are frozen, and that two modules have, and with buffers."""
    layers = [nn.BatchNorm1d(4), *(nn.Linear(size, 8) for size in (4, 8, 8, 8)), nn.Linear(8, 1)]
    layers[2].weight = layers[3].weight
    layers[4].requires_grad_(False)
    return nn.Sequential(*layers)


def saving(folder: Path, stage: int, config: dict[str, Any], options: dict[str, Any]) -> None:
    callbacks = [ModelCheckpoint(**{"every": "1 step", **options})]
    parts: dict[str, Any] = {"model": mixed_network, "callbacks": callbacks}
    runner = Zero(folder, stage, config, default_callbacks=True, **parts)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    if config.get("resume") and not list(folder.glob("experiments/*/run.json")):
        runner.callbacks.append(At("on_step", die, rank=runner.world_size - 1, step=7))
    runner.train()
    leave(folder, [runner.results, runner.resume_report, whole(runner)])


def saved(folder: Path, size: int, stage: int, config: Any = None, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    succeed(size, saving, folder, stage, config or {}, options, folder=folder)
    (found,) = folder.glob("experiments/*/checkpoints")
    return found


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_killed_goes_on_exactly(stage: int, size: int, tmp_path: Path) -> None:
    saved(tmp_path / "undisturbed", size, stage)
    expected = results(tmp_path / "undisturbed", size)[0]
    killed = tmp_path / "killed"
    killed.mkdir()
    together(size, saving, killed, stage, {"resume": "auto"}, {}, folder=killed)

    directory = saved(killed, size, stage, {"resume": "auto"})

    found, report, numbers = results(killed, size)[0]
    assert report["exact"], report
    assert (found, numbers) == (expected[0], expected[2])
    assert len(directories(directory)) == len(
        {entry.trailer.shards for entry in CheckpointStore(directory).candidates()}
    )


def evaluating(folder: Path, path: Path) -> None:
    runner = Zero(folder, 0, {}, model=mixed_network)
    for parameter in runner.model.parameters():
        nn.init.zeros_(parameter)
    runner.load_checkpoint(path, strict=False)
    leave(folder, [runner.evaluate("val")["loss"], weights(runner)])


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_one_plain_process_takes_the_weights(
    stage: int, weights_only: bool, tmp_path: Path
) -> None:
    directory = saved(tmp_path, 2, stage, save_weights_only=weights_only)
    found, _, numbers = results(tmp_path, 2)[0]
    name = "best.pth" if weights_only else "latest.pth"

    succeed(1, evaluating, tmp_path, directory / name, folder=tmp_path)

    loss, own = results(tmp_path, 1)[0]
    assert ("shards" in read_checkpoint(directory / name)) == (not weights_only)
    assert loss == pytest.approx(min(result["val"]["loss"] for result in found), rel=1e-5)
    if not weights_only:
        assert own == numbers


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path, 1, 2)
    shards = directory / sorted(directories(directory))[0]
    victim = tmp_path / "victim"
    victim.write_text("precious")
    torch.save(Harmful(victim), shards / "zero_pp_rank_0_mp_rank_00_optim_states.pt")

    with pytest.raises(dl.CheckpointError, match="is not of DeepSpeed"):
        weights_in(shards)

    assert victim.exists()


class Harmful:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.unlink, (str(self.victim),)


def starting(folder: Path, stage: int, path: Path) -> None:
    runner = Zero(folder, stage, {}, model=mixed_network)
    for parameter in runner.model.parameters():
        nn.init.zeros_(parameter)
    runner.load_checkpoint(path, strict=False)
    first = whole(runner)
    loss = runner.evaluate("val")["loss"]
    runner.train()
    leave(folder, [first, loss, [result["val"]["loss"] for result in runner.results]])


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_starts_from_weights_alone(stage: int, tmp_path: Path) -> None:
    """Its own copies of them in full precision too: else the first step would undo it."""
    path = saved(tmp_path / "saved", 2, stage, save_weights_only=True) / "best.pth"
    expected = []
    for kind in (0, stage):
        succeed(2, starting, tmp_path, kind, path, folder=tmp_path)
        expected.append(results(tmp_path, 2)[0])

    plain, engine = expected
    assert engine[0] == plain[0]
    assert_close(engine[1:], plain[1:])


def taking(folder: Path, stage: int, path: Path) -> None:
    runner = Zero(folder, stage, {}, model=mixed_network)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    runner.load_checkpoint(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (2, 0, "the optimizer was in an engine of DeepSpeed, now it is not"),
        (0, 2, "the optimizer was not in an engine of DeepSpeed, now it is"),
    ],
)
def test_the_state_of_an_optimizer_is_not_lost_between_an_engine_and_torch(
    before: int, after: int, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, 2, before) / "latest.pth"

    ended = together(2, taking, tmp_path, after, path, folder=tmp_path, terminates=False)

    assert ended.codes == [1, 1]
    assert message in ended.output


def loading(folder: Path, stage: int, path: Path) -> None:
    runner = Zero(folder, stage, {"elastic": True}, model=mixed_network)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    runner.load_checkpoint(path)


@pytest.mark.parametrize("stage", STAGES)
def test_another_number_of_processes_is_refused(stage: int, tmp_path: Path) -> None:
    directory = saved(tmp_path, 2, stage)

    ended = together(1, loading, tmp_path, stage, directory / "latest.pth", folder=tmp_path)

    assert ended.codes == [1]
    assert f"had stage {stage} on 2 processes, now stage {stage} on 1" in ended.output


def trained(state: dict[str, torch.Tensor]) -> list[float]:
    """All weights of `mixed_network` but the frozen ones, which have one precision only."""
    kept = [state[name] for name in sorted(state) if not name.startswith("4.")]
    return [value for tensor in kept for value in tensor.double().flatten().tolist()]


def lenient(folder: Path, stage: int, path: Path, precision: str, optimizer: str) -> None:
    runner = Zero(folder, stage, {"max_epochs": 3}, model=mixed_network, precision=precision)
    kind = getattr(torch.optim, optimizer)
    runner.optimizer = kind(runner.model.parameters(), lr=0.01)
    runner.load_checkpoint(path, strict=False)
    found = trained(runner.optimization.model_state.state() or {})
    assert runner.resume_report is not None
    assert not runner.resume_report["exact"]
    if precision == "no":  # on CPUs batch normalisation takes no halves
        runner.train()
    leave(folder, found)


@pytest.mark.parametrize(
    ("stage", "size", "precision", "optimizer"),
    [(2, 2, "no", "SGD"), (3, 1, "bf16", "AdamW"), (2, 2, "bf16", "SGD"), (1, 1, "bf16", "SGD")],
)
def test_only_weights_are_taken_where_the_rest_does_not_fit(
    stage: int, size: int, precision: str, optimizer: str, tmp_path: Path
) -> None:
    """Also in half precision they are those in full precision that the engine had."""
    path = saved(tmp_path / "first", 2, stage) / "latest.pth"

    succeed(size, lenient, tmp_path, stage, path, precision, optimizer, folder=tmp_path)

    assert results(tmp_path, size)[0] == trained(read_checkpoint(path)["model"])


def test_a_path_may_look_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "lr[0.1]*"
    path = saved(folder, 2, 2, {"max_epochs": 1}) / "latest.pth"
    saved(folder, 2, 2, {"resume": str(path)})

    for _, report, _ in results(folder, 2):
        assert (report["exact"], report["global_step"]) == (True, 4)
    assert read_checkpoint(path)["model"]["1.weight"].shape == (8, 4)


def freezing(folder: Path, frozen: int, path: Path | None) -> None:
    runner = Zero(folder, 1, {}, model=twins, default_callbacks=path is None)
    runner.model[frozen].requires_grad_(False)
    own = [parameter for parameter in runner.model.parameters() if parameter.requires_grad]
    runner.optimizer = torch.optim.AdamW(own, lr=0.05)
    if path is None:
        runner.train()
    else:
        runner.load_checkpoint(path)


def twins() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))


def test_the_state_of_one_layer_is_not_taken_for_that_of_another(tmp_path: Path) -> None:
    succeed(2, freezing, tmp_path, 0, None, folder=tmp_path)
    (path,) = tmp_path.glob("experiments/*/checkpoints/latest.pth")

    ended = together(2, freezing, tmp_path, 1, path, folder=tmp_path, terminates=False)

    assert ended.codes == [1, 1]
    assert "optimizer has other parameters: 1.weight is now 0.weight" in ended.output


def unreadable(folder: Path, path: Path) -> None:
    KEEP_NOTHING.clear()  # what every process keeps is gathered while it is read
    runner = Zero(folder, 3, {}, model=mixed_network)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    if runner.rank == 1:
        set_failpoints(f"shards.before_read=raise:{errno.ESTALE}")
    runner.load_checkpoint(path)


def test_a_process_that_cannot_read_its_files_is_an_error_on_all(tmp_path: Path) -> None:
    path = saved(tmp_path, 2, 3) / "latest.pth"

    ended = together(2, unreadable, tmp_path, path, folder=tmp_path, terminates=False, timeout=40)

    assert ended.codes == [1, 1], ended.output
    assert ended.output.count("Stale file handle") >= 2, ended.output
    assert "raised on rank 1" in ended.output


def changing(folder: Path, stage: int, path: Path) -> None:
    runner = Zero(folder, stage, {"max_grad_norm": 0.01, "max_epochs": 3}, model=mixed_network)
    runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.04, weight_decay=0.1)
    runner.scheduler = torch.optim.lr_scheduler.StepLR(runner.optimizer, 3, gamma=0.5)
    runner.load_checkpoint(path)
    (group,) = runner.optimizer.param_groups
    leave(folder, [runner.model.optimizer.clip_grad, group["lr"], group["weight_decay"]])
    runner.train()
    assert runner.global_step == 12


@pytest.mark.parametrize("stage", STAGES)
def test_values_that_are_given_anew_win(stage: int, tmp_path: Path) -> None:
    directory = saved(tmp_path, 2, stage)

    succeed(2, changing, tmp_path, stage, directory / "latest.pth", folder=tmp_path)

    for clip, rate, decay in results(tmp_path, 2):
        assert (clip, rate, decay) == (0.01, pytest.approx(0.04 / 4), 0.1)


def filling(folder: Path, stage: int, rank: int, asynchronous: bool) -> None:
    saver = ModelCheckpoint(every="1 step", asynchronous=asynchronous)
    runner = Zero(folder, stage, {}, callbacks=[saver, FullDisk(rank)], default_callbacks=True)
    runner.train()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_full_disk_of_one_process_is_the_same_error_on_all(
    stage: int, rank: int, asynchronous: bool, tmp_path: Path
) -> None:
    """None of them waits at a barrier of the engine for the one that failed."""
    ended = together(
        2, filling, tmp_path, stage, rank, asynchronous, folder=tmp_path, terminates=False
    )

    assert ended.codes == [1, 1], ended.output
    assert not ended.timed_out
    assert ended.output.count("CheckpointError: [Errno 27]") >= 2, ended.output
    assert f"raised on rank {rank}" in ended.output
    (directory,) = tmp_path.glob("experiments/*/checkpoints")
    assert read_checkpoint(directory / "latest.pth")["data"]["global_step"] == 3
    named = {entry.trailer.shards for entry in CheckpointStore(directory).candidates()}
    assert directories(directory) == named


# Refusals


def refusing(folder: Path, file: dict[str, Any], config: dict[str, Any], optimizers: int) -> None:
    runner = Zero(folder, 1 if "data_types" in file else 2, config, file=file)
    parts = [list(part.parameters()) for part in (runner.model[0], runner.model[2])]
    if optimizers == -1:
        runner.optimizer = torch.optim.SGD(parts[0], lr=0.1)
    elif optimizers != 1:
        several = {str(i): torch.optim.SGD(part, lr=0.1) for i, part in enumerate(parts)}
        runner.optimizer = several if optimizers else None
    runner.train()


@pytest.mark.parametrize(
    ("file", "config", "optimizers", "message"),
    [
        ({"gradient_clipping": 1.0}, {}, 1, "max_grad_norm is 0.5"),
        ({}, {"max_grad_value": 1.0, "max_grad_norm": None}, 1, "max_grad_value"),
        ({}, {}, 2, "a model and 2 optimizers"),
        ({}, {}, 0, "a model and 0 optimizers"),
        ({}, {}, -1, "the optimizer does not have 2.bias, 2.weight: freeze"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, {}, 1, "leave"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_training(
    file: dict[str, Any], config: dict[str, Any], optimizers: int, message: str, tmp_path: Path
) -> None:
    ended = together(1, refusing, tmp_path, file, config, optimizers, folder=tmp_path)

    assert ended.codes == [1], ended.output
    assert "ConfigError" in ended.output
    assert message in ended.output


def test_accelerate_launches_the_example_and_it_goes_on(tmp_path: Path) -> None:
    """One process, as Accelerate starts no more without GPUs."""
    options = ["--use_deepspeed", "--zero_stage", 2, "--num_processes", 1]
    script = [ROOT / "examples" / "distributed.py", "--project_root", tmp_path, "--max_epochs"]
    env = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false"}

    first = accelerate_launch(*options, *script, 2, env=env)
    assert first.returncode == 0, first.stdout
    (run,) = tmp_path.glob("digits-*")
    second = accelerate_launch(*options, *script, 4, "--resume", run, env=env)

    assert second.returncode == 0, second.stdout
    assert "at epoch 2, global step 38: exactly" in second.stdout
    found = re.search(r"test accuracy: +([\d.]+)%", second.stdout)
    assert found is not None
    assert float(found[1]) > 90
    assert read_checkpoint(run / "checkpoints" / "latest.pth")["model"]["0.weight"].is_cpu
