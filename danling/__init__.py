"""PyTorch training on Hugging Face Accelerate: a small event loop, and callbacks for the rest.

Names are imported on first use (PEP 562): `import danling` imports neither torch nor accelerate,
so that the command line answers at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from danling import errors

__version__ = "1.0.0.dev0"

if TYPE_CHECKING:
    from danling import callbacks  # noqa: TID251  # as a name of the package, for type checkers
    from danling.callback import Callback, Priority
    from danling.checkpoint.reading import read_checkpoint
    from danling.config.config import Config
    from danling.errors import (
        CallbackError,
        CheckpointError,
        ConfigError,
        DanLingError,
        DataError,
        DistributedError,
        MetricError,
        ResumeError,
        RunDirectoryError,
        RunError,
        RunLockedError,
    )
    from danling.experiments.collection import runs
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.base import BaseRunner
    from danling.seed import seed_everything
    from danling.triggers import Every

__all__ = [
    "AccelerateRunner",
    "BaseRunner",
    "Callback",
    "CallbackError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DanLingError",
    "DataError",
    "DistributedError",
    "Every",
    "MetricError",
    "Priority",
    "ResumeError",
    "RunDirectoryError",
    "RunError",
    "RunLockedError",
    "__version__",
    "callbacks",
    "errors",
    "read_checkpoint",
    "runs",
    "seed_everything",
]

_MODULES = {
    "AccelerateRunner": "runner.accelerate",
    "BaseRunner": "runner.base",
    "Callback": "callback",
    "Config": "config",
    "Every": "triggers",
    "Priority": "callback",
    "read_checkpoint": "checkpoint.reading",
    "runs": "experiments.collection",
    "callbacks": "callbacks",
    "seed_everything": "seed",
} | {name: "errors" for name in errors.__all__ if name.endswith("Error")}


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that imports a name on its first use (PEP 562).

    A package hides it from type checkers (`if not TYPE_CHECKING:`): to them, a package with a
    `__getattr__` has every name, the misspelled ones too.

    Args:
        package: The full name of the package.
        modules: The module of each name, below the package that has it; a module that is named
            itself is given whole.
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            near = errors.did_you_mean(name, modules)
            raise AttributeError(f"module {package!r} has no attribute {name!r}: {near}")
        module = _imported(f"{package}.{modules[name]}")
        value = module if name == modules[name] else getattr(module, name)
        vars(sys.modules[package])[name] = value
        return value

    return look_up


def _imported(name: str) -> ModuleType:
    """Import without a garbage collection: it goes over all of torch's objects, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if enabled:
            gc.enable()


if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
