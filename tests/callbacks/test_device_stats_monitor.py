from __future__ import annotations

import sys

import pytest
import torch

from danling.callbacks.device_stats_monitor import DeviceStatsMonitor
from danling.callbacks.lambda_callback import LambdaCallback
from danling.testing import CallbackContract


def first_row(make_runner, monitor: DeviceStatsMonitor) -> dict[str, float]:
    rows: list[dict[str, float]] = []
    keep = LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics)))
    make_runner([monitor, keep], max_epochs=1).train()
    return {tag: value for tag, value in rows[0].items() if tag.startswith("system/")}


def test_the_host_is_measured_with_psutil(make_runner):
    pytest.importorskip("psutil")

    row = first_row(make_runner, DeviceStatsMonitor())

    host = {"system/cpu_percent", "system/memory_percent", "system/process_memory_gib"}
    assert host <= set(row)
    assert 0.01 < row["system/process_memory_gib"] < 100
    assert 0 < row["system/memory_percent"] <= 100


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_without_psutil_the_largest_memory_is_left(make_runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psutil", None)  # as if it were not installed

    row = first_row(make_runner, DeviceStatsMonitor())

    assert "system/cpu_percent" not in row
    assert 0.01 < row["system/process_memory_peak_gib"] < 100


def test_without_the_host_a_cpu_has_nothing_to_tell(make_runner):
    row = first_row(make_runner, DeviceStatsMonitor(host=False))

    assert [tag for tag in row if not tag.startswith("system/gpu")] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_a_gpu_is_measured(make_runner):
    row = first_row(make_runner, DeviceStatsMonitor(host=False))

    assert row["system/gpu_memory_peak_gib"] >= row["system/gpu_memory_gib"] > 0
    assert row["system/gpu_memory_reserved_gib"] >= row["system/gpu_memory_peak_gib"]


class TestContract(CallbackContract):
    def make(self):
        return DeviceStatsMonitor()
