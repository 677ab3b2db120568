"""Configurations in .yaml, .yml and .json files."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from danling.errors import ConfigError, did_you_mean
from danling.files.atomic import write_text
from danling.files.json import dumps, loads

__all__ = ["RUN_CONFIG", "read_config_file", "read_run_config", "write_config_file"]


RUN_CONFIG = "runner.yaml"
"""The name of the configuration in the directory of a run."""

_SUFFIXES = (".yaml", ".yml", ".json")


def read_config_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Keys and values of a file; an empty YAML file has none.

    Raises:
        ConfigError: The file cannot be read, its suffix is unknown, or its text is wrong.
    """
    suffix = _suffix(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    values = loads(text, str(path)) if suffix == ".json" else _read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping, and this is a {type(values).__name__}")
    return values


def read_run_config(path: str | PathLike[str]) -> dict[str, Any]:
    r"""The configuration of a run, as its user has set it; empty where it has none.

    Args:
        path: The directory of the run, or one of its checkpoints.

    Raises:
        ConfigError: The file is there and cannot be read.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "runner.yaml").write_text("seed: 3\nresume: auto\n")
        >>> read_run_config(folder)
        {'seed': 3}
    """
    directory = Path(path) if Path(path).is_dir() else Path(path).parent.parent
    file = directory / RUN_CONFIG
    values = read_config_file(file) if file.is_file() else {}
    values.pop("resume", None)  # what it was started with itself
    return values


def write_config_file(path: str | PathLike[str], values: Mapping[str, Any]) -> None:
    """Write keys and values in the format of the suffix; the file is replaced in one step.

    Raises:
        ConfigError: A value cannot be saved, or the suffix is unknown.
    """
    if _suffix(path) == ".json":
        write_text(path, dumps(values, indent=2) + "\n")
    else:
        from danling.config.yaml import dump_yaml

        write_text(path, dump_yaml(values))


def _read_yaml(text: str, path: str) -> Any:
    from danling.config.yaml import load_yaml  # `import danling` does without it

    values = load_yaml(text, path)
    return {} if values is None else values


def _suffix(path: str | PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        problem = f"{path}: a config file ends in {', '.join(_SUFFIXES)}, not in {suffix!r}"
        raise ConfigError(f"{problem}; {did_you_mean(suffix, _SUFFIXES)}")
    return suffix
