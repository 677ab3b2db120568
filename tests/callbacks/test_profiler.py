from __future__ import annotations

import json

import pytest

from danling.callbacks import Profiler
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return Profiler(wait=0, warmup=1, active=1)


def test_each_cycle_is_a_trace_and_a_table(tmp_path):
    profiler = Profiler(wait=0, warmup=1, active=2, repeat=2)
    config = {"project_root": str(tmp_path)}
    runner = TinyRunner(config, callbacks=[profiler], default_callbacks=True)
    runner.train()

    traces = sorted(path.name for path in (runner.dir / "profile").iterdir())
    assert traces == ["rank-0-step-3.json", "rank-0-step-6.json"]
    events = json.loads((runner.dir / "profile" / traces[0]).read_text())["traceEvents"]
    assert any("Optimizer.step" in str(event.get("name")) for event in events)
    assert "Self CPU" in runner.log_path.read_text()


def test_a_training_that_ends_before_its_cycle_leaves_what_there_is(tmp_path):
    profiler = Profiler(wait=0, warmup=1, active=50)
    config = {"project_root": str(tmp_path), "max_steps": 3}
    runner = TinyRunner(config, callbacks=[profiler], default_callbacks=True)
    runner.train()

    assert [path.name for path in (runner.dir / "profile").iterdir()] == ["rank-0-step-3.json"]


def test_arguments_are_checked():
    with pytest.raises(CallbackError, match="must be at least 1"):
        Profiler(active=0)
