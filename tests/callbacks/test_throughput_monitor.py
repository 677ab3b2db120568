from __future__ import annotations

from typing import Any

import pytest
import torch

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.throughput_monitor import PEAK_TFLOPS, ThroughputMonitor, peak_tflops
from danling.errors import CallbackError
from danling.testing import CallbackContract
from tests.support.clock import SetClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    return SetClock(monkeypatch)


def rows_of(make_runner, monitor: ThroughputMonitor, *others, **config) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    keep = LambdaCallback(name="keep", on_log=lambda runner, metrics: rows.append(dict(metrics)))
    make_runner([monitor, keep, *others], **config).train()
    return [row for row in rows if "train/loss" in row]


def test_the_rates_are_those_of_the_clock(make_runner, clock: SetClock):
    monitor = ThroughputMonitor(
        count_tokens=lambda batch: batch[0].numel(), flops_per_sample=1e9, peak_tflops=2.0
    )

    rows = rows_of(make_runner, monitor, clock.each_step_takes(0.5), max_epochs=1)

    assert len(rows) == 3
    for row in rows:
        found = {name: value for name, value in row.items() if name.startswith("perf/")}
        assert found == pytest.approx(
            {
                "perf/batches_per_second": 2,
                "perf/samples_per_second": 8,
                "perf/tokens_per_second": 32,
                "perf/data_wait": 0,
                "perf/tflops": 8e-3,
                "perf/mfu": 4e-3,
            }
        )


def test_the_wait_for_data_is_a_share_of_the_time(make_runner, clock: SetClock):
    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            clock.pass_time(0.5)
            return torch.ones(4), torch.ones(1)

    rows: list[dict[str, float]] = []
    keep = LambdaCallback(on_log=lambda runner, metrics: rows.append(dict(metrics)))
    parts = [ThroughputMonitor(), keep, clock.each_step_takes(6)]
    runner = make_runner(parts, max_epochs=1, evaluate_every=None)
    runner.datasets["train"] = Slow()
    runner.train()

    shares = [row["perf/data_wait"] for row in rows if "perf/data_wait" in row]
    assert shares == pytest.approx([0.25] * 3)  # 4 samples of 0.5 s, then 6 s


def test_an_evaluation_and_a_save_take_no_training_time(make_runner, clock: SetClock):
    pause = LambdaCallback(
        on_evaluate_end=lambda runner, split, result: clock.pass_time(20),
        on_checkpoint=lambda runner: clock.pass_time(5),
    )
    pace, config = clock.each_step_takes(0.5), {"evaluate_every": "1 step", "max_epochs": 1}

    rows = rows_of(make_runner, ThroughputMonitor(), pause, pace, **config)

    assert [row["perf/batches_per_second"] for row in rows] == pytest.approx([2] * 3)


def test_a_device_that_is_not_in_the_table_has_no_peak(make_runner):
    config: dict[str, Any] = {"max_epochs": 1, "accelerate": {"cpu": True}}
    row = rows_of(make_runner, ThroughputMonitor(flops_per_sample=1e9), **config)[0]

    assert "perf/mfu" not in row
    assert row["perf/tflops"] > 0


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp8", 1978.9),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "no", 19.5),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA L4", "fp16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla T4", "bf16", None),
        ("Some other device", "bf16", None),
    ],
)
def test_the_peak_is_found_by_the_name_of_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, expected: float | None
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)

    assert peak_tflops(torch.device("cuda"), precision) == expected


def test_no_name_in_the_table_hides_a_longer_one():
    names = list(PEAK_TFLOPS)

    hidden = [
        (short, long)
        for index, short in enumerate(names)
        for long in names[index + 1 :]
        if short in long
    ]

    assert hidden == []


@pytest.mark.parametrize("arguments", [{"flops_per_sample": 0}, {"peak_tflops": -1.0}])
def test_a_number_that_cannot_be_meant_is_an_error_at_once(arguments: dict[str, Any]):
    with pytest.raises(CallbackError, match="must be positive"):
        ThroughputMonitor(**arguments)


class TestContract(CallbackContract):
    def make(self):
        return ThroughputMonitor()
