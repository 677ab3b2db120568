"""A second platform on `BaseRunner` alone: results, checkpoints and the ready-made callbacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import danling as dl
from danling import callbacks as ready_made
from danling.callback import Callback
from tests.support import plain_runner
from tests.support.plain_runner import Batch, PlainRunner
from tests.support.tensors import are_identical


def batches(seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 8, 3, generator=generator)
    return [(batch, batch.sum(dim=1, keepdim=True)) for batch in inputs]


def make(*callbacks: Callback, **config: Any) -> PlainRunner:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return PlainRunner(
        {"seed": 0, "max_epochs": 3, "log_interval": 2} | config,
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        {"train": batches(1), "val": batches(2)},
        callbacks,
    )


def test_it_is_short_and_knows_no_accelerate():
    source = Path(plain_runner.__file__).read_text(encoding="utf-8")

    assert len(source.splitlines()) < 120
    assert "import accelerate" not in source


def test_it_writes_what_every_run_writes():
    runner = make()

    runner.train()

    assert runner.status == "finished"
    assert [result["epoch"] for result in runner.results] == [1, 2, 3]
    assert runner.best_score == min(score for score in runner.scores if score is not None)
    names = {path.name for path in runner.checkpoint_dir.iterdir()}
    assert {"latest.pth", "best.pth", "index.json"} <= names
    assert json.loads(runner.paths.results.read_text()) == runner.results
    assert json.loads(runner.paths.run_json.read_text())["status"] == "finished"


def test_it_goes_on_from_its_checkpoint_bit_for_bit():
    whole, first, second = make(), make(max_epochs=1), make()
    whole.train()
    first.train()
    checkpoint = dl.read_checkpoint(first.checkpoint_dir / "latest.pth")

    second.go_on(checkpoint)
    second.train()

    assert are_identical(second.model.parameters(), whole.model.parameters())
    assert second.results == whole.results


KINDS = [
    "CSVLogger",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "GarbageCollector",
    "GradientNormMonitor",
    "LambdaCallback",
    "LearningRateMonitor",
    "Logging",
    "ModelSummary",
    "Notify",
    "Preemption",
    "ProgressBar",
    "Results",
    "RunDirectory",
    "RunRecord",
    "SpikeDetection",
    "TensorBoard",
    "ThroughputMonitor",
]
"""Those that need no more than a run; the others move optimizers or weights of Accelerate's."""


@pytest.mark.parametrize("name", KINDS)
def test_every_ready_made_callback_works_with_it(name: str):
    kind = getattr(ready_made, name)
    arguments = {"LambdaCallback": {"on_step": lambda runner: None}}

    runner = make(kind(**arguments.get(name, {})))
    runner.train()

    assert runner.status == "finished"
    assert runner.global_step == 12


def test_a_base_runner_needs_neither_torch_nor_accelerate():
    program = (
        "import sys; from danling import BaseRunner\n"
        "runner = BaseRunner({'seed': 0}, default_callbacks=False)\n"
        "with runner: pass\n"
        "print(runner.status, sorted({'torch', 'accelerate'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout.strip(), done.stderr) == ("finished []", "")
