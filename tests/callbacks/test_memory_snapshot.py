from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import MemorySnapshot
from danling.callbacks.memory_snapshot import listing
from danling.errors import CallbackError
from danling.testing import CallbackContract, Failing, TinyRunner


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return MemorySnapshot(every="3 steps")


class Hungry(nn.Linear):
    """Asks for memory that no machine has in its sixth forward."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.calls = 0
        self.kept = torch.zeros(321, 123)

    def forward(self, points):
        self.calls += 1
        torch.empty(2**58 if self.calls == 6 else 1, dtype=torch.uint8, device=points.device)
        return super().forward(points)


def make(folder: Any, *callbacks: Any, default_callbacks: bool = True, **config: Any) -> TinyRunner:
    runner = TinyRunner(
        {"project_root": str(folder), "evaluate_every": None, **config},
        callbacks=callbacks,
        default_callbacks=default_callbacks,
    )
    runner.model = Hungry()
    runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    return runner


def test_a_run_that_runs_out_of_memory_leaves_a_list_of_what_holds_it(tmp_path):
    snapshot = MemorySnapshot()
    runner = make(tmp_path, snapshot)
    with pytest.raises(RuntimeError, match="allocate memory"):
        runner.train()

    assert snapshot.paths == [runner.dir / "memory" / "rank-0-step-5.txt"]
    text = snapshot.paths[0].read_text()
    assert f"{321 * 123 * 4:>16,}      1  cpu float32 (321, 123)" in text


def test_a_run_without_a_directory_says_it_in_its_log(tmp_path, caplog):
    with pytest.raises(RuntimeError, match="allocate memory"):
        make(tmp_path, MemorySnapshot(), default_callbacks=False).train()

    assert "cpu float32 (321, 123)" in caplog.text


def test_another_error_leaves_none(tmp_path):
    snapshot = MemorySnapshot()
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, snapshot, Failing("on_step")).train()

    assert snapshot.paths == []


def test_snapshots_of_a_run_that_goes_well_are_periodic(tmp_path):
    snapshot = MemorySnapshot(every="2 steps")
    make(tmp_path, snapshot, max_steps=5).train()

    assert [path.name for path in snapshot.paths] == ["rank-0-step-2.txt", "rank-0-step-4.txt"]


def test_alike_tensors_are_one_row_and_the_largest_comes_first():
    small, large = [torch.zeros(2) for _ in range(3)], torch.zeros(100, dtype=torch.int64)
    rows = listing([*small, large, large[:5], torch.zeros(0)], rows=1).splitlines()

    assert rows[1].split() == ["800", "1", "cpu", "int64", "(100,)"]
    assert rows[2].split() == ["24", "1", "more", "kinds"]
    assert rows[3].split() == ["824", "in", "all"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_the_history_of_the_allocations_is_kept_too(tmp_path):
    snapshot = MemorySnapshot()
    runner = make(tmp_path, snapshot)
    with pytest.raises(torch.OutOfMemoryError):
        runner.train()

    [path] = snapshot.paths
    history = pickle.loads(path.with_suffix(".pickle").read_bytes())
    frames = [
        frame["filename"]
        for trace in history["device_traces"]
        for entry in trace
        for frame in entry.get("frames", [])
    ]
    assert any(name.endswith("test_memory_snapshot.py") for name in frames)
    assert "cuda:0 float32 (321, 123)" in path.read_text()


@pytest.mark.parametrize("arguments", [{"max_entries": 0}, {"rows": 0}])
def test_arguments_are_checked(arguments: dict[str, Any]):
    with pytest.raises(CallbackError, match="MemorySnapshot"):
        MemorySnapshot(**arguments)
