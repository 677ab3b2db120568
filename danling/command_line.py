"""Configurations from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin

from danling.annotations import MAPPING_TYPES, union_arms
from danling.config_file import read_config_file
from danling.config_help import config_help, declared_flags, section_of
from danling.errors import ConfigError, did_you_mean
from danling.fields import Field
from danling.jsonable import to_plain
from danling.settings import SETTINGS
from danling.yaml_format import dump_yaml

if TYPE_CHECKING:
    from danling.config import Config

__all__ = ["parse_command_line"]

_Config = TypeVar("_Config", bound="Config")
_OWN_FLAGS = ("--config", "--help", "--print-config")


def parse_command_line(cls: type[_Config], arguments: Sequence[str] | None = None) -> _Config:
    """A configuration of the class from files and flags; see `danling.Config.parse`.

    Args:
        cls: Class of the configuration.
        arguments: What to read instead of the arguments of this process.
    """
    program = Path(sys.argv[0]).name or "python"
    try:
        options = _read(list(sys.argv[1:] if arguments is None else arguments))
        if options.wants_help:
            print(config_help(cls, program), end="")
            raise SystemExit(0)
        config = _build(cls, options)
        if options.prints_config:
            print(dump_yaml(to_plain(config.resolved(), "config")), end="")
            raise SystemExit(0)
    except ConfigError as error:
        _leave(program, str(error))
    return config


@dataclass
class _Options:
    """What stands on the command line, before any of it has a meaning."""

    files: list[str] = field(default_factory=list)
    flags: list[tuple[str, list[str]]] = field(default_factory=list)
    wants_help: bool = False
    prints_config: bool = False


def _read(arguments: list[str]) -> _Options:
    options = _Options()
    for flag, values in _grouped(arguments):
        if flag in ("--help", "-h"):
            options.wants_help = True
        elif flag == "--print-config" and not values:
            options.prints_config = True
        elif flag == "--config":
            if not values:
                raise ConfigError("--config needs a file")
            options.files += values
        else:
            options.flags.append((flag, values))
    return options


def _grouped(arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the values after it: `--key=value`, `--key value` or `--key 1 2 3`."""
    position = 0
    while position < len(arguments):
        flag = arguments[position]
        if not _is_flag(flag):
            raise ConfigError(f"unexpected argument {flag!r}: values follow a --flag")
        flag, equals, value = flag.partition("=")
        values = [value] if equals else []
        position += 1
        while not equals and position < len(arguments) and not _is_flag(arguments[position]):
            values.append(arguments[position])
            position += 1
        yield flag, values


def _is_flag(argument: str) -> bool:
    return argument == "-h" or (argument.startswith("--") and len(argument) > 2)


def _build(cls: type[_Config], options: _Options) -> _Config:
    config = cls._blank("config")
    for path in options.files:
        content = read_config_file(path)
        try:
            config._merge(content, cls._conversion())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    for flag, values in options.flags:
        key, value = _meaning(cls, flag, values)
        config._put(key, value, cls._conversion(is_text=True))
    config._require_complete()
    return config


def _meaning(cls: type[Config], flag: str, values: list[str]) -> tuple[str, Any]:
    """The key that a flag sets, and the text or the list of texts that it sets it to."""
    key = flag.removeprefix("--").replace("-", "_")
    declared = _find(cls, key)
    if key.startswith("no_") and not values:
        negated = _find(cls, key.removeprefix("no_"))
        if negated is not None and _is_switch(negated) and not (declared and declared.name):
            return key.removeprefix("no_"), False
    if declared is None:
        near = did_you_mean(f"--{key}", {*declared_flags(cls), *_OWN_FLAGS})
        raise ConfigError(f"unrecognised option {flag}; {near}")
    is_list = any(
        (get_origin(arm) or arm) in (list, tuple) for arm in union_arms(declared.annotation)
    )
    if not values:
        if not is_list and not _is_switch(declared):
            raise ConfigError(f"{flag} needs a value")
        return key, [] if is_list else True
    return key, values[0] if len(values) == 1 else values


def _is_switch(declared: Field) -> bool:
    return any(arm in (bool, Any) for arm in union_arms(declared.annotation))


def _find(cls: type[Config], key: str, is_top: bool = True) -> Field | None:
    """The field of a key; one without a name where any key is taken; None where it is not."""
    head, _, rest = key.partition(".")
    declared = cls._fields.get(head) or (SETTINGS.get(head) if is_top else None)
    if declared is None:
        return Field("", Any) if cls._is_open else None
    section = section_of(declared)
    if not rest:
        return declared
    if section is not None:
        return _find(section, rest, is_top=False)
    for arm in union_arms(declared.annotation):
        if (get_origin(arm) or arm) in (dict, *MAPPING_TYPES, Any):
            return Field("", (get_args(arm) or (str, Any))[1])
    return None


def _leave(program: str, problem: str) -> NoReturn:
    print(f"{program}: error: {problem}\nsee {program} --help", file=sys.stderr)
    raise SystemExit(2)
