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

if TYPE_CHECKING:
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
    from danling.runner.accelerate import AccelerateRunner
    from danling.runner.base import BaseRunner
    from danling.seed import seed_everything
    from danling.triggers import Every

    __version__: str

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
    "errors",
    "read_checkpoint",
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
    "seed_everything": "seed",
} | {name: "errors" for name in errors.__all__ if name.endswith("Error")}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _installed_version()
    elif name in _MODULES:
        value = getattr(_imported(f"danling.{_MODULES[name]}"), name)
    else:
        near = errors.did_you_mean(name, __all__)
        raise AttributeError(f"module 'danling' has no attribute {name!r}: {near}")
    globals()[name] = value
    return value


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package: each name is imported from its module on first use (PEP 562).

    Args:
        package: The full name of the package.
        modules: The module below it that has the name, for each name.
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            near = errors.did_you_mean(name, modules)
            raise AttributeError(f"module {package!r} has no attribute {name!r}: {near}")
        value = getattr(_imported(f"{package}.{modules[name]}"), name)
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("danling")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
