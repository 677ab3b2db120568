"""Configurations in .yaml, .yml and .json files, and files that extend others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from danling.errors import ConfigError, did_you_mean
from danling.files.atomic import write_text
from danling.files.json import dumps, loads, to_plain

__all__ = ["RUN_CONFIG", "Layer", "read_config_layers", "read_run_layers", "write_config_file"]


RUN_CONFIG = "runner.yaml"
"""The name of the configuration in the directory of a run."""

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Layer:
    """The content of one file.

    Attributes:
        path: The file.
        values: The keys and values of the file.
        text: The file as it was read.
    """

    path: str
    values: dict[str, Any]
    text: str

    def lines(self) -> dict[str, int]:
        """The line of every key, by dotted key; none where YAML cannot read the JSON."""
        from danling.config.yaml import key_lines, load_yaml

        try:
            load_yaml(self.text, self.path)
        except ConfigError:  # JSON with tabs between its values
            return {}
        return key_lines(self.text)


def read_config_layers(path: str | PathLike[str]) -> list[Layer]:
    """The files that a file extends, each before those that extend it, and the file itself.

    A file extends others by the key `extends`, with a path or a list of paths that are relative
    to its own folder. Layers are merged in the order in which they are returned.

    Raises:
        ConfigError: A file cannot be read, or the files extend each other in a circle.
    """
    layers: list[Layer] = []

    def add(path: Path, chain: tuple[Path, ...]) -> None:
        here = path.resolve()
        if here in chain:
            circle = " -> ".join(str(each) for each in (*chain[chain.index(here) :], here))
            raise ConfigError(f"{path}: the files extend each other in a circle: {circle}")
        layer = _read_layer(path)
        for name in _extended(layer):
            add(path.parent / Path(name).expanduser(), (*chain, here))
        layers.append(layer)

    add(Path(path), ())
    return layers


def _extended(layer: Layer) -> list[str]:
    names = layer.values.pop("extends", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{layer.path}: 'extends' takes the path of a file, or a list of paths")
    return names


def _read_layer(path: Path) -> Layer:
    suffix = _suffix(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    values = _read_json(text, str(path)) if suffix == ".json" else _read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping, and this is a {type(values).__name__}")
    return Layer(str(path), values, text)


def read_run_layers(path: str | PathLike[str]) -> list[Layer]:
    r"""The configuration of a run, as its user has set it; empty where it has none.

    Args:
        path: The directory of the run, or one of its checkpoints.

    Raises:
        ConfigError: The file is there and cannot be read.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "runner.yaml").write_text("seed: 3\nresume: auto\n")
        >>> [layer.values for layer in read_run_layers(folder)]
        [{'seed': 3}]
    """
    directory = Path(path) if Path(path).is_dir() else Path(path).parent.parent
    file = directory / RUN_CONFIG
    layers = read_config_layers(file) if file.is_file() else []
    for layer in layers:
        layer.values.pop("resume", None)  # what it was started with itself
    return layers


def _read_json(text: str, path: str) -> Any:
    try:
        return to_plain(loads(text, path), path)
    except ConfigError:
        raise
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise ConfigError(f"{path}: a number in it cannot be read: {error}") from error


def write_config_file(
    path: str | PathLike[str], values: Mapping[str, Any], *, private: bool = False
) -> None:
    """Write keys and values in the format of the suffix; the file is replaced in one step.

    With `private` its owner alone may read it.

    Raises:
        ConfigError: A value cannot be saved, or the suffix is unknown.
    """
    if _suffix(path) == ".json":
        text = dumps(values, indent=2) + "\n"
    else:
        from danling.config.yaml import dump_yaml

        text = dump_yaml(values)
    write_text(path, text, private=private)


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
