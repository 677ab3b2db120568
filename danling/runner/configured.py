"""The callbacks that a configuration names: `callbacks: {early_stopping: {patience: 3}}`."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from danling.callback import Callback
from danling.config import Config
from danling.config.frozen import plain_value
from danling.config.settings import callbacks_by_name
from danling.config.types import MAPPING_TYPES, require_supported, union_arms
from danling.defaults import callback_class
from danling.errors import ConfigError, DanLingError, did_you_mean
from danling.files.json import short_repr

__all__ = ["Configured", "read_callbacks"]


_CLASS = "callback"  # the argument that tells the class of an entry with a name of its own


@dataclass(frozen=True)
class Configured:
    """What a configuration says of callbacks.

    Attributes:
        callbacks: New instances, in the order of the configuration.
        left_out: The names of those that shall not be there.
        watching: The entries, by their names, that change nothing of what a run computes.
        entries: What was read, in its full form.
    """

    callbacks: tuple[Callback, ...] = ()
    left_out: frozenset[str] = frozenset()
    watching: frozenset[str] = frozenset()
    entries: Mapping[str, Any] = field(default_factory=dict)

    def check_unchanged(self, config: Config) -> None:
        """Refuse callbacks that were configured after those of the configuration were made.

        Raises:
            ConfigError: They are others.
        """
        if plain_value(config.callbacks) != self.entries:
            raise ConfigError(
                "config.callbacks was changed after the runner was made, which reads it once; use "
                "runner.callbacks.append(...) and runner.callbacks.remove(...)"
            )


def read_callbacks(config: Config, others: Iterable[Callback]) -> Configured:
    """The callbacks of `config.callbacks`, which is rewritten in its full form.

    Args:
        config: The configuration.
        others: The callbacks that are there without it, which it may leave out.

    Raises:
        ConfigError: There is no such callback, or it does not take such arguments.
    """
    entries = callbacks_by_name(plain_value(config.callbacks), "config.callbacks")
    if not entries:
        return Configured()
    config["callbacks"] = entries
    config.callbacks.to_dict()  # who takes a section as a whole has read it
    known = {callback.name: callback for callback in others}
    made: dict[str, Callback] = {}
    left_out: dict[str, Callback | type[Callback]] = {}
    for name, options in entries.items():
        where = f"config.callbacks.{name}"
        if options is False:
            left_out[name] = known[name] if name in known else callback_class(name, where)
        elif isinstance(options, Mapping):
            made[name] = _make(name, dict(options), where)
        else:
            raise ConfigError(
                f"{where}: expected a mapping of arguments, true or false, got "
                f"{short_repr(options)}"
            )
    watching = [name for name, entry in {**made, **left_out}.items() if entry.only_watches]
    return Configured(tuple(made.values()), frozenset(left_out), frozenset(watching), entries)


def _make(name: str, options: dict[str, Any], where: str) -> Callback:
    meant = options.pop(_CLASS, None)
    if meant is not None and not isinstance(meant, str):
        raise ConfigError(f"{where}.{_CLASS}: expected a name, got {short_repr(meant)}")
    kind = callback_class(meant or name, where)
    arguments = _bound(kind, options, where)
    try:
        callback = kind(*arguments.args, **arguments.kwargs)
    except (DanLingError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if meant is not None and "name" not in options:
        callback.name = name
    return callback


def _bound(kind: type, options: Mapping[str, Any], where: str) -> inspect.BoundArguments:
    """The arguments of a constructor, converted as its annotations say.

    Raises:
        ConfigError: One is unknown, missing, or has another type.
    """
    signature = inspect.signature(kind)
    parameters = signature.parameters
    rest = next((each.name for each in parameters.values() if each.kind is each.VAR_KEYWORD), None)
    arguments: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for option, value in options.items():
        parameter = parameters.get(option)
        if parameter is None or option == rest:
            others[option] = value
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments[option] = tuple(value) if isinstance(value, list) else (value,)
        else:
            annotation = _annotation(parameter, kind)
            arguments[option] = _converted(value, annotation, f"{where}.{option}")
    if rest is not None:
        arguments[rest] = others
    elif others:
        option = next(iter(others))
        near = did_you_mean(option, parameters)
        raise ConfigError(f"{where}: {kind.__name__} has no argument {option!r}; {near}")
    for name, parameter in parameters.items():
        is_single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_single and parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(f"{where}: {kind.__name__} needs the argument {name!r}")
    bound = inspect.BoundArguments(signature, OrderedDict(arguments))
    bound.apply_defaults()
    return bound


def _annotation(parameter: inspect.Parameter, kind: type) -> Any:
    """The type of a parameter; any where it is not told, or is not there at run time."""
    if parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return eval(parameter.annotation, vars(sys.modules[kind.__module__]))
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _converted(value: Any, annotation: Any, path: str) -> Any:
    """A value in the type of an argument; as it is where a configuration has no such type."""
    for arm in union_arms(annotation):
        if get_origin(arm) in (dict, *MAPPING_TYPES) and get_args(arm)[0] is int:
            return _with_numbers_as_keys(value, path)
    try:
        require_supported(annotation, path)
    except ConfigError:
        return value
    return plain_value(Config._conversion().convert(value, annotation, path))


def _with_numbers_as_keys(value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return {int(key): item for key, item in value.items()}
    except ValueError as error:
        raise ConfigError(f"{path}: the keys are whole numbers, got {short_repr(value)}") from error
