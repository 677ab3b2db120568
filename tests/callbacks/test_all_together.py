"""Everything attached at once: killed five times it ends as an undisturbed run, bit for bit."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danling.callbacks
from danling import callbacks as ready
from danling.callback import Callback
from danling.defaults import default_callbacks
from danling.errors import CallbackError
from danling.testing import Lasting, TinyRunner, in_child, outcome
from tests.callbacks.test_tracker import Remote

for extra in ("fsspec", "safetensors", "matplotlib", "onnxscript", "huggingface_hub", "optuna"):
    pytest.importorskip(extra)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

AVERAGES = {  # one of them decides what is evaluated and saved
    "ema_weight_averaging": lambda: ready.EMAWeightAveraging(0.8),
    "stochastic_weight_averaging": lambda: ready.StochasticWeightAveraging(0.005, 2),
    "weight_averaging": lambda: ready.WeightAveraging("2 steps"),
    "schedule_free": lambda: ready.ScheduleFree(),
}
CHANGING = {  # they say so in their contract; what is left only looks on
    "backbone_finetuning",
    "freeze",
    "gradient_accumulation_scheduler",
    "gradient_clipping",
    "hyperparameter_schedule/weight_decay",
    "learning_rate_finder",
    "model_pruning",
}


def trial() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(pruner=optuna.pruners.NopPruner()).ask()


def attached(average: str = "ema_weight_averaging") -> dict[str, Callback]:
    """One of each, but for the other averages and those that need what is not installed."""
    found: list[Callback] = [
        AVERAGES[average](),
        ready.BackboneFinetuning(2),
        ready.BatchSizeFinder(steps_per_trial=1, max_val=8),
        ready.CSVLogger(),
        ready.CallbackProfiler(),
        ready.ConfusionMatrix(3),
        ready.DeviceStatsMonitor(),
        ready.EarlyStopping(patience=50),
        ready.Freeze("head.bias", until="5 steps"),
        ready.GarbageCollector(3),
        ready.GenerationSamples(["a"], function=lambda model, prompts: [str(torch.rand(1))]),
        ready.GradientAccumulationScheduler({1: 2}),
        ready.GradientClipping("adaptive", 0.5),
        ready.GradientNormMonitor(),
        ready.HubPush("user/all", endpoint="http://127.0.0.1:9"),
        ready.HyperparameterSchedule("weight_decay", lambda step: step / 100),
        ready.ImageSamples(2, function=lambda batch, output: batch[0].view(-1, 1, 2, 2)),
        ready.LambdaCallback(on_step=lambda runner: None),
        ready.LearningRateFinder(1e-3, 1.0, num_training_steps=20),
        ready.LearningRateMonitor(),
        ready.MemorySnapshot(every="6 steps"),
        ready.ModelCheckpoint(name="own", save_top_k=2, keep_every="1 epoch", keep_last=1),
        ready.ModelExport(),
        ready.ModelPruning(amount=0.2),
        ready.ModelSummary(),
        ready.NaNGuard("skip"),
        ready.Notify(),
        ready.ONNXExport(),
        ready.OptunaPruning(trial()),
        ready.PredictionWriter("predictions"),
        ready.Profiler(wait=1, active=1),
        ready.RemoteMirror("memory://all"),
        ready.SafetensorsExport(),
        ready.SlowRankDetector(),
        ready.SpikeDetection(rtol=100.0),
        ready.TensorBoard(),
        ready.ThroughputMonitor(),
        ready.Timer("1 h"),
        ready.Tracker(Remote()),
    ]
    with contextlib.suppress(CallbackError):  # Ray is not installed
        found.append(ready.RayTuneReport())
    return {callback.name: callback for callback in found}


def make(
    folder: Path,
    *,
    kill_at: int | None = None,
    without: str = "",
    average: str = "ema_weight_averaging",
) -> TinyRunner:
    given = attached(average)
    if without:
        del given[without]
    runner = TinyRunner(
        {"project_root": str(folder), "max_epochs": 4, "log_interval": 2, "resume": "auto"},
        callbacks=[*given.values(), Lasting(kill_at)],
        default_callbacks=True,
    )
    runner.model = nn.Sequential()
    runner.model.add_module("backbone", nn.Linear(4, 6))
    runner.model.add_module("head", nn.Linear(6, 3))
    if average == "schedule_free":
        schedulefree: Any = pytest.importorskip("schedulefree")
        runner.optimizer = schedulefree.AdamWScheduleFree(runner.model.parameters(), lr=0.01)
        runner.optimizer.train()  # the finders step before anybody else
    else:
        runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.01)
    return runner


def bits(value: Any) -> Any:
    """A state in which equal means equal to the last bit, NaN too."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [bits(entry) for entry in value]
    return value.hex() if isinstance(value, float) else value


def states(runner: TinyRunner, *, without: str = "") -> dict[str, Any]:
    """The states of the callbacks, but for the seconds of training, which no two runs share."""
    found = {c.name: bits(c.state_dict()) for c in runner.callbacks if c.name != without}
    for checkpoint in found.keys() & {"model_checkpoint", "own"}:
        for moment in found[checkpoint].values():
            del moment[2]
    return found


def test_no_ready_made_callback_is_missing():
    there = {type(callback).__name__ for callback in [*attached().values(), *default_callbacks()]}
    there |= {type(make_average()).__name__ for make_average in AVERAGES.values()}

    assert there | {"RayTuneReport"} == set(danling.callbacks.__all__)


@pytest.mark.parametrize(
    "average",
    [
        "ema_weight_averaging",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("stochastic_weight_averaging", "weight_averaging", "schedule_free")
        ),
    ],
)
def test_five_kills_change_nothing(tmp_path: Path, average: str):
    undisturbed = make(tmp_path / "whole", average=average)
    undisturbed.train()

    for step in (1, 3, 5, 6, 9):
        code = in_child(make(tmp_path / "killed", kill_at=step, average=average).train)
        assert code == -signal.SIGKILL
    resumed = make(tmp_path / "killed", average=average)
    resumed.train()

    report = resumed.resume_report or {}
    assert report["exact"], report["reasons"]
    assert bits(outcome(resumed)) == bits(outcome(undisturbed))
    assert states(resumed) == states(undisturbed)
    [folder] = (tmp_path / "killed").glob("danling-*")
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if ".tmp" in name or ".part" in name or "corrupt" in name]
    there, expected = (
        {path.relative_to(run.dir).as_posix() for path in run.dir.rglob("*") if path.is_file()}
        for run in (resumed, undisturbed)
    )
    assert {name for name in expected - there if "events" not in name} == set()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyRunner:
    """A run with everything."""
    runner = make(tmp_path_factory.mktemp("whole"))
    runner.train()
    return runner


LOOKING_ON = sorted({*attached()} - CHANGING - {"ema_weight_averaging"})
SOME = set(random.Random(0).sample(LOOKING_ON, 6))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOME else pytest.mark.exhaustive)
        for name in LOOKING_ON
    ],
)
def test_one_that_only_looks_on_changes_nothing_by_its_absence(
    tmp_path: Path, whole: TinyRunner, name: str
):
    without = make(tmp_path, without=name)
    without.train()

    assert bits(outcome(without)) == bits(outcome(whole))
    assert states(without) == states(whole, without=name)


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_one_that_changes_the_training_does_so(tmp_path: Path, whole: TinyRunner, name: str):
    """Else its place in the list above would prove nothing."""
    without = make(tmp_path, without=name)
    without.train()

    assert bits(outcome(without)) != bits(outcome(whole))
