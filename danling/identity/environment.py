"""The environment of a run: all that may change results, and nothing that is secret."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

from danling.identity.redaction import is_secret_name, mask_argv, mask_values

__all__ = ["environment_variables", "installed_packages", "launch_entry", "read_environment"]


_ALLOWED_PREFIXES = (
    *("ACCELERATE_", "CUBLAS_", "CUDA_", "CUDNN_", "DANLING_", "FSDP_", "GLOO_", "GOMP_", "HF_"),
    *("HIP_", "HSA_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTORCH_", "ROCR_"),
    *("SLURM_", "TORCH", "TRITON_", "XLA_"),
)
_ALLOWED = {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONHASHSEED"}
_ALLOWED |= {"RANK", "TOKENIZERS_PARALLELISM", "WORLD_SIZE"}
_SECRET_WORDS = {"AUTH", "CREDENTIAL", "CREDENTIALS", "KEY", "PASSWORD", "SECRET", "TOKEN"}
_JOB_VARIABLES = {
    "slurm": (
        *("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
        "SLURM_RESTART_COUNT",
    ),
    "torchelastic": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
}


def read_environment() -> dict[str, Any]:
    """The system, the versions that matter most, the devices and the variables, for run.json.

    Nothing is imported for it: devices are named when torch is there already.

    Example:
        >>> sorted(read_environment())  # doctest: +NORMALIZE_WHITESPACE
        ['cpu_count', 'devices', 'host', 'platform', 'python', 'python_implementation', 'variables',
         'versions']
    """
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "cpu_count": os.cpu_count(),
        "versions": {name: _version(name) for name in ("danling", "torch", "accelerate", "numpy")},
        "devices": _devices(),
        "variables": environment_variables(os.environ),
    }


def environment_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that a run records: an allow-list without secrets.

    Example:
        >>> environment_variables({"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_x", "HOME": "/root"})
        {'NCCL_DEBUG': 'INFO'}
    """
    allowed = {
        name: value
        for name, value in sorted(variables.items())
        if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    return {name: _clean(name, value) for name, value in allowed.items() if not _is_secret(name)}


def installed_packages() -> dict[str, str]:
    """The installed distributions with their versions, for a file in metadata/.

    Example:
        >>> "torch" in installed_packages()
        True
    """
    return dict(_packages(tuple((folder, _changed_at(folder)) for folder in sys.path)))


@lru_cache(maxsize=1)
def _packages(folders: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Return `installed_packages`, read again when a folder of packages has changed."""
    packages: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if name:  # a folder that an uninstallation left behind has none
            packages.setdefault(name.lower().replace("_", "-"), version)
    return dict(sorted(packages.items()))


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    """Two headers of its metadata; Python itself parses a page of text for each of them."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    headers: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("Name", "Version"):
            headers.setdefault(name, value.strip())
        if not line or len(headers) == 2:  # an empty line ends the headers
            break
    return headers.get("Name", ""), headers.get("Version", "")


def _changed_at(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:  # a folder that is not there, or an archive that is gone
        return 0


def launch_entry() -> dict[str, Any]:
    """The start of this process: host, process, command line and the job of a scheduler.

    Example:
        >>> sorted(launch_entry())
        ['argv', 'cwd', 'host', 'parent_pid', 'pid', 'slurm', 'torchelastic', 'world_size']
    """
    jobs = {
        scheduler: {name: os.environ[name] for name in names if name in os.environ}
        for scheduler, names in _JOB_VARIABLES.items()
    }
    size = os.environ.get("WORLD_SIZE", "1")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "parent_pid": os.getppid(),
        "argv": mask_argv([_text(argument) for argument in sys.orig_argv]),
        "cwd": _cwd(),
        "world_size": int(size) if size.isdigit() else 1,
        **jobs,
    }


def _cwd() -> str | None:
    try:
        return _text(os.getcwd())
    except OSError:  # deleted
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    torch = sys.modules.get("torch")
    # Asking before CUDA was used would start it, which forked workers do not survive.
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _is_secret(name: str) -> bool:
    return is_secret_name(name) or bool(_SECRET_WORDS & set(name.upper().split("_")))


def _text(value: str) -> str:
    """Bytes that are no characters become question marks."""
    return value.encode("utf-8", "replace").decode()


def _clean(name: str, value: str) -> str:
    cleaned: dict[str, str] = mask_values({name: _text(value)})
    return cleaned[name]
