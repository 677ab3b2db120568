"""The ready-made callbacks, one per file; imported on first use (PEP 562)."""

from __future__ import annotations

if __name__ != "danling.callbacks":  # under a second name every class would exist twice
    raise ImportError("import danling.callbacks instead: this folder is that package")

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.callbacks.csv_logger import CSVLogger
    from danling.callbacks.device_stats_monitor import DeviceStatsMonitor
    from danling.callbacks.early_stopping import EarlyStopping
    from danling.callbacks.gradient_norm_monitor import GradientNormMonitor
    from danling.callbacks.lambda_callback import LambdaCallback
    from danling.callbacks.learning_rate_monitor import LearningRateMonitor
    from danling.callbacks.logging import Logging
    from danling.callbacks.model_checkpoint import ModelCheckpoint
    from danling.callbacks.model_summary import ModelSummary
    from danling.callbacks.preemption import Preemption
    from danling.callbacks.progress_bar import ProgressBar
    from danling.callbacks.results import Results
    from danling.callbacks.run_directory import RunDirectory
    from danling.callbacks.run_record import RunRecord
    from danling.callbacks.tensorboard import TensorBoard
    from danling.callbacks.throughput_monitor import ThroughputMonitor
    from danling.callbacks.tracker import Tracker

__all__ = [
    "CSVLogger",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "GradientNormMonitor",
    "LambdaCallback",
    "LearningRateMonitor",
    "Logging",
    "ModelCheckpoint",
    "ModelSummary",
    "Preemption",
    "ProgressBar",
    "Results",
    "RunDirectory",
    "RunRecord",
    "TensorBoard",
    "ThroughputMonitor",
    "Tracker",
]

_MODULES = {
    "CSVLogger": "csv_logger",
    "DeviceStatsMonitor": "device_stats_monitor",
    "EarlyStopping": "early_stopping",
    "GradientNormMonitor": "gradient_norm_monitor",
    "LambdaCallback": "lambda_callback",
    "LearningRateMonitor": "learning_rate_monitor",
    "Logging": "logging",
    "ModelCheckpoint": "model_checkpoint",
    "ModelSummary": "model_summary",
    "Preemption": "preemption",
    "ProgressBar": "progress_bar",
    "Results": "results",
    "RunDirectory": "run_directory",
    "RunRecord": "run_record",
    "TensorBoard": "tensorboard",
    "ThroughputMonitor": "throughput_monitor",
    "Tracker": "tracker",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
