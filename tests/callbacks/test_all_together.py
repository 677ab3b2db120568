"""Everything attached at once: killed five times it ends as an undisturbed run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from danling.callback import Callback
from danling.callbacks import (
    CallbackProfiler,
    EMAWeightAveraging,
    Freeze,
    GarbageCollector,
    GradientAccumulationScheduler,
    GradientClipping,
    HyperparameterSchedule,
    LearningRateFinder,
    NaNGuard,
    Notify,
    PredictionWriter,
    Profiler,
    RemoteMirror,
    SafetensorsExport,
    SpikeDetection,
    Timer,
)
from danling.testing import Lasting, TinyRunner, in_child, is_equal, outcome

pytest.importorskip("fsspec")
pytest.importorskip("safetensors")


def callbacks() -> dict[str, Callback]:
    attached: list[Callback] = [
        CallbackProfiler(),
        EMAWeightAveraging(0.8),
        Freeze("bias", until="5 steps"),
        GarbageCollector(3),
        GradientAccumulationScheduler({1: 2}),
        GradientClipping("adaptive", 0.5),
        HyperparameterSchedule("weight_decay", lambda step: step / 100),
        LearningRateFinder(1e-3, 1.0, num_training_steps=20),
        NaNGuard("skip"),
        Notify(),
        PredictionWriter("predictions"),
        Profiler(wait=1, active=1),
        RemoteMirror("memory://all"),
        SafetensorsExport(),
        SpikeDetection(rtol=100.0),
        Timer("1 h"),
    ]
    return {callback.name: callback for callback in attached}


def make(folder: Path, *, kill_at: int | None = None, without: str = "") -> TinyRunner:
    attached = [callback for name, callback in callbacks().items() if name != without]
    runner = TinyRunner(
        {"project_root": str(folder), "max_epochs": 4, "log_interval": 2, "resume": "auto"},
        callbacks=[*attached, Lasting(kill_at)],
        default_callbacks=True,
    )
    runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.01)
    return runner


def test_five_kills_change_nothing(tmp_path: Path):
    undisturbed = make(tmp_path / "whole")
    undisturbed.train()

    for step in (1, 3, 5, 6, 9):
        code = in_child(make(tmp_path / "killed", kill_at=step).train)
        assert code == -signal.SIGKILL
    resumed = make(tmp_path / "killed")
    resumed.train()

    assert (resumed.resume_report or {})["exact"]
    assert is_equal(outcome(resumed), outcome(undisturbed))
    states = [
        {name: runner.callbacks[name].state_dict() for name in callbacks()}
        for runner in (resumed, undisturbed)
    ]
    assert is_equal(*states)


@pytest.mark.parametrize(
    "name",
    [
        "callback_profiler",
        "garbage_collector",
        "nan_guard",
        "notify",
        "prediction_writer",
        "profiler",
        "remote_mirror",
        "safetensors_export",
        "spike_detection",
        "timer",
    ],
)
def test_one_that_only_looks_on_changes_nothing_by_its_absence(tmp_path: Path, name: str):
    whole, without = make(tmp_path / "whole"), make(tmp_path / "without", without=name)
    whole.train()
    without.train()

    assert is_equal(outcome(without), outcome(whole))
