"""How fast the training is, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from danling.callback import Callback
from danling.errors import CallbackError
from danling.runner.steps import sample_count

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["PEAK_TFLOPS", "ThroughputMonitor", "peak_tflops"]

PEAK_TFLOPS: Mapping[str, Mapping[str, float]] = {
    "B200": {"bf16": 2250, "fp16": 2250, "fp8": 4500, "tf32": 1100, "fp32": 75},
    "H200": {"bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "tf32": 494.7, "fp32": 66.9},
    "H100 NVL": {"bf16": 835.5, "fp16": 835.5, "fp8": 1670.5, "tf32": 417.5, "fp32": 60},
    "H100 PCIE": {"bf16": 756, "fp16": 756, "fp8": 1513, "tf32": 378, "fp32": 51.2},
    "H100": {"bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5},
    "A10G": {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 31.5},
    "A10": {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"bf16": 362, "fp16": 362, "fp8": 733, "tf32": 183, "fp32": 91.6},
    "L40": {"bf16": 181, "fp16": 181, "fp8": 362, "tf32": 90.5, "fp32": 90.5},
    "L4": {"bf16": 121, "fp16": 121, "fp8": 242.5, "tf32": 60, "fp32": 30.3},
    "V100": {"fp16": 125, "fp32": 15.7},
    "T4": {"fp16": 65, "fp32": 8.1},
    "4090": {"bf16": 165.2, "fp16": 165.2, "fp8": 330.3, "tf32": 82.6, "fp32": 82.6},
    "3090": {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6},
}
"""Dense peaks in TFLOP/s by device and precision, from NVIDIA's data sheets, without sparsity."""


class ThroughputMonitor(Callback):
    """Log samples, tokens and batches per second, the wait for data, and the MFU.

    Tells whether the data or the model is the bottleneck. Rates are over all processes and over the
    time since the last log without evaluations and saves: `perf/samples_per_second`,
    `perf/batches_per_second`, `perf/data_wait` (the share of the time, 0 to 1), with `count_tokens`
    `perf/tokens_per_second`, with `flops_per_sample` `perf/tflops` and, where the peak of the
    device is known, `perf/mfu` (0 to 1). Nothing waits for the device.

    Args:
        count_tokens: The function that gives the number of tokens of a batch, as `lambda batch:
            batch["input_ids"].numel()`.
        flops_per_sample: The floating point operations of forward and backward for one sample;
            about 6 per parameter and token in a transformer.
        peak_tflops: The peak of one device in TFLOP/s, where it is not in the table.

    Raises:
        CallbackError: A number is not positive.

    Example:
        >>> ThroughputMonitor(flops_per_sample=1e9).name
        'throughput_monitor'

    MFU: Chowdhery et al., PaLM, 2022, appendix B.
    """

    name = "throughput_monitor"
    only_watches = True

    def __init__(
        self,
        *,
        count_tokens: Callable[[Any], int] | None = None,
        flops_per_sample: float | None = None,
        peak_tflops: float | None = None,
    ) -> None:
        for argument, value in (
            ("flops_per_sample", flops_per_sample),
            ("peak_tflops", peak_tflops),
        ):
            if value is not None and not value > 0:
                raise CallbackError(f"ThroughputMonitor({argument}={value!r}): must be positive")
        self.count_tokens = count_tokens
        self.flops_per_sample = flops_per_sample
        self.peak_tflops = peak_tflops
        self._window = _Window()

    def on_train_start(self, runner: Runner) -> None:
        """Start to measure."""
        self._window = _Window()

    def on_fetch_start(self, runner: Runner) -> None:
        """Wait for data; what was going on since the last batch was no training."""
        self._window.fetch_started = now = time.perf_counter()
        self._window.resume(now)

    def on_fetch_end(self, runner: Runner, batch: Any) -> None:
        """Have the data."""
        self._window.waited += time.perf_counter() - self._window.fetch_started

    def on_batch_end(self, runner: Runner, batch: Any, output: Any) -> None:
        """Count the batch, and log on the steps whose metrics are logged."""
        window = self._window
        window.batches += 1
        window.samples += sample_count(batch)
        if self.count_tokens is not None:
            window.tokens += self.count_tokens(batch)
        if runner.is_log_step:
            rates = self._rates(window, time.perf_counter(), runner)
            runner.log({f"perf/{name}": value for name, value in rates.items()})
            self._window = _Window()

    def on_evaluate_start(self, runner: Runner, split: str) -> None:
        """Stop the clock until the next batch is fetched."""
        self._window.pause(time.perf_counter())

    def on_checkpoint(self, runner: Runner) -> None:
        """Stop the clock until the next batch is fetched: a save may follow."""
        self._window.pause(time.perf_counter())

    def _rates(self, window: _Window, now: float, runner: Runner) -> dict[str, float]:
        seconds = max(now - window.started - window.paused, 1e-9)
        everywhere = runner.world_size / seconds  # the log takes the mean over the processes
        rates = {
            "batches_per_second": window.batches * everywhere,
            "samples_per_second": window.samples * everywhere,
            "data_wait": window.waited / seconds,
        }
        if self.count_tokens is not None:
            rates["tokens_per_second"] = window.tokens * everywhere
        if self.flops_per_sample is not None:
            tflops = self.flops_per_sample * window.samples / seconds / 1e12
            rates["tflops"] = tflops * runner.world_size
            peak = self.peak_tflops or peak_tflops(runner.device, runner.precision)
            if peak is not None:
                rates["mfu"] = tflops / peak
        return rates


class _Window:
    """What happened since the last log."""

    def __init__(self) -> None:
        self.started = self.fetch_started = time.perf_counter()
        self.waited = self.paused = 0.0
        self.batches = self.samples = self.tokens = 0
        self._pause_started: float | None = None

    def pause(self, now: float) -> None:
        if self._pause_started is None:
            self._pause_started = now

    def resume(self, now: float) -> None:
        if self._pause_started is not None:
            self.paused += now - self._pause_started
            self._pause_started = None


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Peak of a device in TFLOP/s in a precision of Accelerate; None where it is not in the table.

    Example:
        >>> peak_tflops(torch.device("cpu"), "bf16") is None
        True
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper()
    if precision == "no":
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
    for model, peaks in PEAK_TFLOPS.items():  # the longer of two similar names comes first
        if model in name:
            return peaks.get(precision)
    return None
