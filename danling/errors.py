"""The errors that DanLing raises on purpose.

DanLingError
├── ConfigError          a key, a value or a file of a configuration is wrong
├── CallbackError        a callback or the list of callbacks is wrong
├── DataError            a dataset, loader, split or batch is wrong
├── MetricError          a loss, a metric or the monitor is wrong
├── RunError             the runner was used out of order
├── RunDirectoryError    the directory of a run cannot be made or used
│   └── RunLockedError   another process works in it
├── CheckpointError      a checkpoint cannot be written or read
├── ResumeError          a run cannot be continued exactly as asked
└── DistributedError     another process failed, or the processes disagree
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CallbackError",
    "CheckpointError",
    "ConfigError",
    "DanLingError",
    "DataError",
    "DistributedError",
    "MetricError",
    "ResumeError",
    "RunDirectoryError",
    "RunError",
    "RunLockedError",
    "did_you_mean",
]


class DanLingError(Exception):
    """Base of all errors of the library: catch this to catch them all."""


class ConfigError(DanLingError, ValueError):
    """A key, a value or a file of a configuration is wrong."""


class CallbackError(DanLingError, TypeError):
    """A callback, or the list of callbacks, is wrong."""


class DataError(DanLingError, ValueError):
    """A dataset, a loader, a split or a batch is wrong."""


class MetricError(DanLingError, ValueError):
    """A loss, a metric or the monitored value is wrong."""


class RunError(DanLingError, RuntimeError):
    """The runner was used out of order."""


class RunDirectoryError(DanLingError, OSError):
    """The directory of a run cannot be made or used."""


class RunLockedError(RunDirectoryError):
    """Another process works in the run's directory."""


class CheckpointError(DanLingError, OSError):
    """A checkpoint cannot be written or read; `errno` tells a full disk from the rest."""


class ResumeError(DanLingError, RuntimeError):
    """A run cannot be continued exactly as asked; the message lists the ways out."""


class DistributedError(DanLingError, RuntimeError):
    """Another process failed, or the processes disagree."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of an error message that names the valid word nearest to `word`, or all of them.

    Example:
        >>> did_you_mean("on_stpe", ["on_step", "on_save"])
        "did you mean 'on_step'?"
        >>> did_you_mean("qqq", ["val", "train"])
        "valid are 'train', 'val'"
    """
    names = sorted({str(name) for name in known})
    near = get_close_matches(word, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "valid are " + ", ".join(repr(name) for name in names) if names else "there are none"
