"""The ready-made callbacks, one per file; imported on first use (PEP 562)."""

from __future__ import annotations

if __name__ != "danling.callbacks":  # under a second name every class would exist twice
    raise ImportError("import danling.callbacks instead: this folder is that package")

from typing import TYPE_CHECKING

from danling import lazy_names

if TYPE_CHECKING:
    from danling.callbacks.backbone_finetuning import BackboneFinetuning
    from danling.callbacks.batch_size_finder import BatchSizeFinder
    from danling.callbacks.callback_profiler import CallbackProfiler
    from danling.callbacks.confusion_matrix import ConfusionMatrix
    from danling.callbacks.csv_logger import CSVLogger
    from danling.callbacks.device_stats_monitor import DeviceStatsMonitor
    from danling.callbacks.early_stopping import EarlyStopping
    from danling.callbacks.ema_weight_averaging import EMAWeightAveraging
    from danling.callbacks.freeze import Freeze
    from danling.callbacks.garbage_collector import GarbageCollector
    from danling.callbacks.generation_samples import GenerationSamples
    from danling.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from danling.callbacks.gradient_clipping import GradientClipping
    from danling.callbacks.gradient_norm_monitor import GradientNormMonitor
    from danling.callbacks.hub_push import HubPush
    from danling.callbacks.hyperparameter_schedule import HyperparameterSchedule
    from danling.callbacks.image_samples import ImageSamples
    from danling.callbacks.lambda_callback import LambdaCallback
    from danling.callbacks.learning_rate_finder import LearningRateFinder
    from danling.callbacks.learning_rate_monitor import LearningRateMonitor
    from danling.callbacks.logging import Logging
    from danling.callbacks.memory_snapshot import MemorySnapshot
    from danling.callbacks.model_checkpoint import ModelCheckpoint
    from danling.callbacks.model_export import ModelExport
    from danling.callbacks.model_pruning import ModelPruning
    from danling.callbacks.model_summary import ModelSummary
    from danling.callbacks.nan_guard import NaNGuard
    from danling.callbacks.notify import Notify
    from danling.callbacks.onnx_export import ONNXExport
    from danling.callbacks.optuna_pruning import OptunaPruning
    from danling.callbacks.prediction_writer import PredictionWriter
    from danling.callbacks.preemption import Preemption
    from danling.callbacks.profiler import Profiler
    from danling.callbacks.progress_bar import ProgressBar
    from danling.callbacks.ray_tune_report import RayTuneReport
    from danling.callbacks.remote_mirror import RemoteMirror
    from danling.callbacks.results import Results
    from danling.callbacks.run_directory import RunDirectory
    from danling.callbacks.run_record import RunRecord
    from danling.callbacks.safetensors_export import SafetensorsExport
    from danling.callbacks.schedule_free import ScheduleFree
    from danling.callbacks.slow_rank_detector import SlowRankDetector
    from danling.callbacks.spike_detection import SpikeDetection
    from danling.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
    from danling.callbacks.tensorboard import TensorBoard
    from danling.callbacks.throughput_monitor import ThroughputMonitor
    from danling.callbacks.timer import Timer
    from danling.callbacks.tracker import Tracker
    from danling.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BatchSizeFinder",
    "CSVLogger",
    "CallbackProfiler",
    "ConfusionMatrix",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "Freeze",
    "GarbageCollector",
    "GenerationSamples",
    "GradientAccumulationScheduler",
    "GradientClipping",
    "GradientNormMonitor",
    "HubPush",
    "HyperparameterSchedule",
    "ImageSamples",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "Logging",
    "MemorySnapshot",
    "ModelCheckpoint",
    "ModelExport",
    "ModelPruning",
    "ModelSummary",
    "NaNGuard",
    "Notify",
    "ONNXExport",
    "OptunaPruning",
    "PredictionWriter",
    "Preemption",
    "Profiler",
    "ProgressBar",
    "RayTuneReport",
    "RemoteMirror",
    "Results",
    "RunDirectory",
    "RunRecord",
    "SafetensorsExport",
    "ScheduleFree",
    "SlowRankDetector",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TensorBoard",
    "ThroughputMonitor",
    "Timer",
    "Tracker",
    "WeightAveraging",
]

_MODULES = {
    "BackboneFinetuning": "backbone_finetuning",
    "BatchSizeFinder": "batch_size_finder",
    "CSVLogger": "csv_logger",
    "CallbackProfiler": "callback_profiler",
    "ConfusionMatrix": "confusion_matrix",
    "DeviceStatsMonitor": "device_stats_monitor",
    "EMAWeightAveraging": "ema_weight_averaging",
    "EarlyStopping": "early_stopping",
    "Freeze": "freeze",
    "GarbageCollector": "garbage_collector",
    "GenerationSamples": "generation_samples",
    "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
    "GradientClipping": "gradient_clipping",
    "GradientNormMonitor": "gradient_norm_monitor",
    "HubPush": "hub_push",
    "HyperparameterSchedule": "hyperparameter_schedule",
    "ImageSamples": "image_samples",
    "LambdaCallback": "lambda_callback",
    "LearningRateFinder": "learning_rate_finder",
    "LearningRateMonitor": "learning_rate_monitor",
    "Logging": "logging",
    "MemorySnapshot": "memory_snapshot",
    "ModelCheckpoint": "model_checkpoint",
    "ModelExport": "model_export",
    "ModelPruning": "model_pruning",
    "ModelSummary": "model_summary",
    "NaNGuard": "nan_guard",
    "Notify": "notify",
    "ONNXExport": "onnx_export",
    "OptunaPruning": "optuna_pruning",
    "PredictionWriter": "prediction_writer",
    "Preemption": "preemption",
    "Profiler": "profiler",
    "ProgressBar": "progress_bar",
    "RayTuneReport": "ray_tune_report",
    "RemoteMirror": "remote_mirror",
    "Results": "results",
    "RunDirectory": "run_directory",
    "RunRecord": "run_record",
    "SafetensorsExport": "safetensors_export",
    "ScheduleFree": "schedule_free",
    "SlowRankDetector": "slow_rank_detector",
    "SpikeDetection": "spike_detection",
    "StochasticWeightAveraging": "stochastic_weight_averaging",
    "TensorBoard": "tensorboard",
    "ThroughputMonitor": "throughput_monitor",
    "Timer": "timer",
    "Tracker": "tracker",
    "WeightAveraging": "weight_averaging",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)


def classes_by_name() -> dict[str, str]:
    """The name of each class by the one that it has in a configuration: that of its file."""
    return {name: written for written, name in _MODULES.items()}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
