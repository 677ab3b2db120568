"""Memory and utilisation of the device and of the host."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from danling.callback import Callback

if TYPE_CHECKING:
    from danling.runner.base import BaseRunner as Runner

__all__ = ["DeviceStatsMonitor"]

_GIB = 2**30


class DeviceStatsMonitor(Callback):
    """Log how much of the machine the training uses, at the log interval.

    Shows a leak before it is an error, and a device that waits. On CUDA: `system/gpu_memory_gib`,
    `system/gpu_memory_peak_gib` (since the last log), `system/gpu_memory_reserved_gib` and, with
    `nvidia-ml-py` installed, `system/gpu_utilization_percent`. On the host, with `psutil`
    installed: `system/cpu_percent` and `system/memory_percent` of the machine,
    `system/process_memory_gib` of this process; without it, its largest memory so far,
    `system/process_memory_peak_gib`. GiB are 2**30 bytes. Nothing waits for the device. Values are
    means over the processes.

    Args:
        host: Whether memory and load of the host are logged, too.

    Example:
        >>> DeviceStatsMonitor().name
        'device_stats_monitor'
    """

    name = "device_stats_monitor"
    only_watches = True

    def __init__(self, *, host: bool = True) -> None:
        self.host = host
        self._has_nvml = False
        self._psutil: Any = None

    def on_setup(self, runner: Runner) -> None:
        """Find out what can be measured here."""
        self._has_nvml = find_spec("pynvml") is not None
        if not self.host:
            return
        try:
            self._psutil = import_module("psutil")  # optional, and without types
        except ImportError:
            runner.logger.info("device_stats_monitor: for the load of the CPU, pip install psutil")
            return
        self._psutil.cpu_percent()  # the first call only starts the measurement

    def on_step(self, runner: Runner) -> None:
        """Log on the steps whose metrics are logged."""
        if not runner.is_log_step:
            return
        stats = self._host_stats() if self.host else {}
        if runner.device.type == "cuda":
            stats |= self._cuda_stats(runner.device)
        runner.log({f"system/{name}": value for name, value in stats.items()})

    def _cuda_stats(self, device: torch.device) -> dict[str, float]:
        stats = {
            "gpu_memory_gib": torch.cuda.memory_allocated(device) / _GIB,
            "gpu_memory_peak_gib": torch.cuda.max_memory_allocated(device) / _GIB,
            "gpu_memory_reserved_gib": torch.cuda.memory_reserved(device) / _GIB,
        }
        torch.cuda.reset_peak_memory_stats(device)
        if self._has_nvml:
            try:
                stats["gpu_utilization_percent"] = float(torch.cuda.utilization(device))
            except Exception:  # the driver does not tell, as in some containers: of its own types
                self._has_nvml = False
        return stats

    def _host_stats(self) -> dict[str, float]:
        if self._psutil is None:
            return _peak_memory()
        return {
            "cpu_percent": self._psutil.cpu_percent(),
            "memory_percent": self._psutil.virtual_memory().percent,
            "process_memory_gib": self._psutil.Process().memory_info().rss / _GIB,
        }


def _peak_memory() -> dict[str, float]:
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"process_memory_peak_gib": peak / _GIB}
