"""Configurations from the command line."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from danling.config.description import Key, describe_keys, section_of
from danling.config.fields import REQUIRED, Field
from danling.config.files import read_config_layers, read_run_layers
from danling.config.mapping import TypedMapping
from danling.config.references import References, escape
from danling.config.settings import SETTINGS
from danling.config.types import MAPPING_TYPES, is_section, union_arms
from danling.config.yaml import dump_yaml
from danling.errors import ConfigError, did_you_mean
from danling.files.json import dotted, dumps, to_plain

__all__ = ["config_help", "declared_flags", "parse_command_line"]


_Config = TypeVar("_Config", bound=TypedMapping)
_ASSIGNMENT = re.compile(r"[+~]{0,2}[A-Za-z_][\w.-]*=")
_OWN_FLAGS = ("--config", "--help", "--print-config")


def parse_command_line(cls: type[_Config], arguments: Sequence[str] | None = None) -> _Config:
    """A configuration of the class from files and flags; see `danling.Config.parse`.

    Args:
        cls: The class of the configuration.
        arguments: The words to read instead of the arguments of this process.
    """
    program = Path(sys.argv[0]).name or "python"
    try:
        options = _read(_own_arguments() if arguments is None else list(arguments))
        if options.wants_help:
            print(config_help(cls, program), end="")
            raise SystemExit(0)
        config, origins = _build(cls, options)
        if options.prints_config:
            values = escape(to_plain(config.resolved(), "config"))
            print("\n".join(_with_origins(values, origins)))
            raise SystemExit(0)
    except ConfigError as error:
        _leave(program, str(error))
    return config


def _own_arguments() -> list[str]:
    """The arguments of this process; a notebook's are its kernel's, not the user's."""
    program = sys.argv[0]
    in_kernel = "ipykernel" in program or "colab_kernel_launcher" in program
    return [] if in_kernel else sys.argv[1:]


@dataclass
class _Options:
    """The options of a command line, before any of them has a meaning."""

    files: list[str] = field(default_factory=list)
    flags: list[tuple[str, list[str]]] = field(default_factory=list)
    wants_help: bool = False
    prints_config: bool = False

    @property
    def resumed(self) -> str | None:
        """The run or checkpoint that `--resume` names by its path."""
        values = [values for flag, values in self.flags if flag == "--resume"]
        is_path = values and len(values[-1]) == 1 and os.path.exists(values[-1][0])
        return values[-1][0] if is_path else None


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
            # A key without dashes is not taken: after a flag with several values it would be one.
            way_out = f"write --{flag}" if _ASSIGNMENT.match(flag) else "values follow a --flag"
            raise ConfigError(f"unexpected argument {flag!r}: {way_out}")
        flag, equals, value = flag.partition("=")
        values = [value] if equals else []
        position += 1
        while not equals and position < len(arguments) and not _is_flag(arguments[position]):
            values.append(arguments[position])
            position += 1
        yield flag, values


def _is_flag(argument: str) -> bool:
    return argument == "-h" or (argument.startswith("--") and len(argument) > 2)


def _build(cls: type[_Config], options: _Options) -> tuple[_Config, dict[str, str]]:
    """The configuration, and where each value in it comes from, by dotted key."""
    config, references = cls._blank("config"), References()
    origins: dict[str, str] = {}
    layers = [layer for path in options.files for layer in read_config_layers(path)]
    if run := options.resumed:  # it goes on with its own configuration, and what is said here
        layers = [*read_run_layers(run), *layers]
    for layer in layers:
        if options.prints_config:
            lines = layer.lines()
            for key in dotted(layer.values):
                place = f"{layer.path}:{lines[key]}" if key in lines else layer.path
                _note(origins, key, place)
        try:
            config._merge(references.take(layer.values), cls._conversion())
        except ConfigError as error:
            raise ConfigError(f"{layer.path}: {error}") from error
    keys = []
    for flag, values in options.flags:
        key, value = _meaning(cls, flag, values)
        keys.append(key)
        _note(origins, key, "command line")
        for name, plain in references.take({key: value}).items():
            config._put(name, plain, cls._conversion(is_text=True))
    references.fill(config)
    config._require_complete()
    is_named = "run_name" in keys or options.resumed
    if not is_named and config.name_run(keys):
        _note(origins, "run_name", "made from the command line")
    return config, origins


def _note(origins: dict[str, str], key: str, place: str) -> None:
    for inner in [known for known in origins if known.startswith(f"{key}.")]:
        del origins[inner]
    origins[key] = place


def _with_origins(
    values: Mapping[str, Any], origins: Mapping[str, str], path: str = "", place: str = "default"
) -> list[str]:
    """The lines of YAML, each value with a comment that says where it comes from."""
    lines: list[str] = []
    for key, value in values.items():
        here = origins.get(path + key, place)
        if isinstance(value, dict) and value:
            lines += dump_yaml({key: {}}).replace(" {}", "").splitlines()
            inner = _with_origins(value, origins, f"{path}{key}.", here)
            lines += [f"  {line}" for line in inner]
            continue
        text = dump_yaml({key: value}).splitlines()
        if len(text) == 1:
            lines.append(f"{text[0]}  # {here}")
        else:
            lines += [f"# {here}", *text]
    return lines


def _meaning(cls: type[TypedMapping], flag: str, values: list[str]) -> tuple[str, Any]:
    """The key that a flag sets, and the text or the list of texts that it sets it to."""
    key = flag.removeprefix("--").replace("-", "_")
    declared = _find(cls, key)
    if key.startswith("no_") and not values:
        negated = _find(cls, key.removeprefix("no_"))
        if negated is not None and _is_switch(negated) and not (declared and declared.name):
            return key.removeprefix("no_"), False
    if declared is None:
        near = _nearest_flag(key, {*declared_flags(cls), *_OWN_FLAGS})
        raise ConfigError(f"unrecognised option {flag}; {near}")
    is_list = any(
        (get_origin(arm) or arm) in (list, tuple) for arm in union_arms(declared.annotation)
    )
    if not values:
        if not is_list and not _is_switch(declared):
            raise ConfigError(f"{flag} needs a value")
        return key, [] if is_list else True
    return key, values[0] if len(values) == 1 else values


def _nearest_flag(key: str, flags: Collection[str]) -> str:
    """End of a message that names the flags with the same last part, or the nearest one."""
    last = key.rpartition(".")[2].replace("_", "-")
    same = sorted(flag for flag in flags if flag.rpartition(".")[2] == last and "." in flag)
    if same:
        return f"did you mean {' or '.join(map(repr, same))}?"
    return did_you_mean(f"--{key}", flags)


def _is_switch(declared: Field) -> bool:
    return any(arm in (bool, Any) for arm in union_arms(declared.annotation))


def _find(cls: type[TypedMapping], key: str, is_top: bool = True) -> Field | None:
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


_COLUMN = 30
_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def config_help(cls: type[TypedMapping], program: str) -> str:
    """Everything that can be given on the command line, one entry per key.

    Args:
        cls: The class of the configuration.
        program: The name of the script.
    """
    lines = [f"usage: {program} [--config FILE ...] [--print-config] [--KEY VALUE ...]", ""]
    document = vars(cls).get("__doc__")
    if document and cls._fields:
        lines += [inspect.cleandoc(document).partition("\n\n")[0], ""]
    lines += ["options:"]
    lines += _entry("-h, --help", "show this text and leave")
    lines += _entry("--config FILE", "read keys from FILE; several are merged, flags come last")
    lines += _entry("--print-config", "show every value as YAML, say where it is from, and leave")
    for title, flags in zip(("keys:", "keys of every run:"), _all_flags(cls), strict=True):
        entries = [line for flag in flags for line in _entry(flag.usage, flag.help)]
        lines += ["", title, *entries] if entries else []
    return "\n".join(lines) + "\n"


def declared_flags(cls: type[TypedMapping]) -> list[str]:
    """The flags of all declared and well-known keys."""
    own, settings = _all_flags(cls)
    return [flag.usage.partition(" ")[0].replace("[no-]", "") for flag in own + settings]


@dataclass(frozen=True)
class _Flag:
    usage: str
    help: str


def _all_flags(cls: type[TypedMapping]) -> tuple[list[_Flag], list[_Flag]]:
    """The flags of the keys that the class declares, and of those of every run."""
    own, settings = describe_keys(cls)
    return list(map(_flag, own)), list(map(_flag, settings))


def _flag(key: Key) -> _Flag:
    return _Flag(_usage(key.name, key.annotation), _help(key.help, key.default))


def _usage(key: str, annotation: Any) -> str:
    flag = key.replace("_", "-")
    if union_arms(annotation) == (bool,):
        return f"--[no-]{flag}"
    return f"--{flag} {_metavar(annotation)}"


def _metavar(annotation: Any) -> str:
    arms = union_arms(annotation)
    if len(arms) > 1:
        metavar = "|".join(_metavar(arm) for arm in arms if arm is not bool)
        return f"[{metavar}]" if bool in arms else metavar
    kind = get_origin(arms[0]) or arms[0]
    if kind is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(arms[0])) + "}"
    if kind in (list, tuple):
        inner = [argument for argument in get_args(arms[0]) if argument is not Ellipsis] or [Any]
        return " ".join(map(_metavar, inner)) + (" ..." if len(inner) == 1 else "")
    if kind in (dict, *MAPPING_TYPES) or is_section(kind):
        return "JSON"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "{" + ",".join(kind.__members__) + "}"
    return _METAVARS.get(kind, "VALUE")


def _help(comment: str, default: Any) -> str:
    if default is REQUIRED:
        note = "(required)"
    elif default is None or default == {}:
        note = ""
    else:
        plain = to_plain(default)
        text = plain if isinstance(plain, str) and plain else dumps(plain)
        note = f"(default: {text})"
    return f"{comment} {note}".strip()


def _entry(usage: str, text: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    first = f"  {usage}"
    if len(first) > _COLUMN - 2 and text:
        head, first = [first], ""
    else:
        head = []
    wrapped = textwrap.wrap(text, width - _COLUMN) or [""]
    lines = [f"{first:<{_COLUMN}}{wrapped[0]}", *(" " * _COLUMN + line for line in wrapped[1:])]
    return head + [line.rstrip() for line in lines]
