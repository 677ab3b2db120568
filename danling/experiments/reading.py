"""Reading the directories of runs, whatever state they are in."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danling.errors import ConfigError, RunDirectoryError
from danling.files.json import loads
from danling.run.record import SCHEMA

__all__ = [
    "PassedOver",
    "find_root",
    "list_root",
    "read_json",
    "read_record",
    "read_settings",
    "with_numbers",
]


ROOT_NAME = "experiments"
VARIABLE = "DANLING_ROOT"

_RUN_NAME = re.compile(r".+(-[0-9a-f]{8}){3}", re.DOTALL)
_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_NEEDED = ("run_id", "created", "status", "uuid", "name")


@dataclass(frozen=True)
class PassedOver:
    """An entry of the folder of the runs that is not read as a run."""

    path: Path
    reason: str


def find_root(start: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the runs: `start`, else `DANLING_ROOT`, else the nearest `experiments`.

    It is looked for upwards from the current folder, as git looks for its own. A folder given as
    `start` may also be the one that holds `experiments`.

    Raises:
        RunDirectoryError: There is no such folder.
    """
    given = os.fspath(start) if start is not None else os.environ.get(VARIABLE)
    if given:
        root = Path(given)
        if not root.is_dir():
            raise RunDirectoryError(f"there is no folder {str(root)!r}: give that of the runs")
        inner = root / ROOT_NAME
        return inner if inner.is_dir() and not _has_runs(root) else root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if folder.name == ROOT_NAME and _has_runs(folder):
            return folder
        if _is_folder(folder / ROOT_NAME):
            return folder / ROOT_NAME
    raise RunDirectoryError(
        f"there is no folder {ROOT_NAME!r} here or above: name one with -C DIR or {VARIABLE}"
    )


def _is_folder(path: Path) -> bool:
    """Whether there is a folder, as far as this process may know."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _has_runs(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(_RUN_NAME.fullmatch(entry.name) for entry in entries)
    return False


def list_root(root: Path) -> tuple[list[Path], list[PassedOver]]:
    """The directories in the folder of the runs, and the entries that cannot be a run.

    Hidden entries, and files that do not have the name of a run, are no matter of this folder.

    Raises:
        RunDirectoryError: The folder cannot be read.
    """
    found: list[tuple[Path, str | None]] = []
    try:
        with os.scandir(root) as entries:
            for entry in (entry for entry in entries if not entry.name.startswith(".")):
                problem = _entry_problem(entry)
                found.append((Path(entry.path), problem))
    except OSError as error:
        reason = f"the folder of the runs cannot be read: {error.strerror}"
        raise RunDirectoryError(error.errno, reason, str(root)) from error
    directories = [path for path, problem in found if problem is None]
    others = [
        PassedOver(path, problem)
        for path, problem in found
        if problem is not None and _RUN_NAME.fullmatch(path.name)
    ]
    return directories, others


def _entry_problem(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_symlink():
            return "a symbolic link"
        return None if entry.is_dir() else "not a directory"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: The content is not JSON.
    """
    # without O_NONBLOCK the open of a pipe waits for its writer, for ever
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file", str(path))
        content = os.read(descriptor, status.st_size + 1)  # most files are read at once
        while piece := os.read(descriptor, 1 << 20):
            content += piece
    finally:
        os.close(descriptor)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_record(directory: Path) -> dict[str, Any] | PassedOver:
    """The run.json of a directory, or why there is none that can be used."""
    try:
        data = read_json(os.path.join(directory, "run.json"))
    except FileNotFoundError:
        return PassedOver(directory, "it has no run.json")
    except OSError as error:
        return PassedOver(directory, f"run.json cannot be read: {error.strerror}")
    except ValueError as error:
        return PassedOver(directory, f"run.json is not valid JSON: {error}")
    problem = _record_problem(data)
    return data if problem is None else PassedOver(directory, problem)


def _record_problem(data: Any) -> str | None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema < 1:
        return "run.json is not one of DanLing: there is no schema in it"
    if schema > SCHEMA:
        return f"run.json was written by a later DanLing (schema {schema}, known is {SCHEMA})"
    missing = [key for key in _NEEDED if not isinstance(data.get(key), str)]
    return f"run.json is incomplete: {', '.join(missing)} missing" if missing else None


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a .yaml or .json file, as they stand in it.

    Raises:
        ConfigError: It cannot be read, or holds no mapping.
    """
    from danling.config.yaml import load_yaml

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}") from error
    values = loads(text, str(path)) if Path(path).suffix == ".json" else load_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: this is no mapping of keys to values")
    return values


def with_numbers(value: Any) -> Any:
    """Results as read from a file, with NaN and the infinities as numbers again.

    Example:
        >>> with_numbers({"val": {"loss": "NaN"}})
        {'val': {'loss': nan}}
    """
    if isinstance(value, Mapping):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
