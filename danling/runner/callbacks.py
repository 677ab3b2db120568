"""The callbacks of a runner: which hooks each overrides, and those of the configuration."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from danling.callback import HOOKS, Callback
from danling.config import Config
from danling.config.frozen import plain_value
from danling.config.settings import callbacks_by_name
from danling.config.types import MAPPING_TYPES, require_supported, union_arms
from danling.defaults import callback_class
from danling.errors import (
    CallbackError,
    CheckpointError,
    ConfigError,
    DanLingError,
    RunError,
    did_you_mean,
)
from danling.files.json import short_repr

__all__ = ["Callbacks", "Configured", "read_callbacks"]


Listener = tuple[Callback, Callable[..., None]]


class Callbacks:
    """The callbacks of a runner, in the order in which they run.

    List-like: `append`, `remove` (a callback or a name), `in`, `callbacks["early_stopping"]`.
    It may change before and between runs, not during one.

    Attributes:
        active: The hooks that any callback overrides; what happens in every step looks here first.

    Args:
        callbacks: The callbacks of the user.
        defaults: The callbacks that are there unless the user brings one of the same name.

    Raises:
        CallbackError: Something is not a callback, or two have one name.

    Example:
        >>> from danling.callback import Callback
        >>> class Greeter(Callback): ...
        >>> callbacks = Callbacks([Greeter()])
        >>> "greeter" in callbacks, callbacks["greeter"].name
        (True, 'greeter')
    """

    def __init__(
        self, callbacks: Iterable[Callback] = (), defaults: Iterable[Callback] = ()
    ) -> None:
        self._all: list[Callback] = []
        self._defaults: list[Callback] = list(defaults)
        self._tables: dict[str, tuple[Listener, ...]] = {}
        self.active: set[str] = set()
        self._unclaimed: dict[str, dict[str, Any]] = {}
        self._left_out: Collection[str] = ()
        self.in_run = False
        if isinstance(callbacks, Callback):
            kind = type(callbacks).__name__
            raise CallbackError(f"callbacks is a list: write callbacks=[{kind}()]")
        for callback in callbacks:
            self._check(callback, self._all)
            self._all.append(callback)
        own = {callback.name for callback in self._all}
        self._defaults = [callback for callback in self._defaults if callback.name not in own]
        self._all = [*self._defaults, *self._all]
        self.rebuild()

    def configure(self, callbacks: Iterable[Callback], left_out: Collection[str]) -> None:
        """Add those that a configuration names; leave out others, now and when they are added.

        Raises:
            CallbackError: A callback of that name is there, and is no default one.
        """
        self._left_out = left_out
        self._all = self._kept(self._all)
        self.rebuild()
        for callback in callbacks:
            if callback.name in self and self[callback.name] not in self._defaults:
                raise CallbackError(
                    f"the callback {callback.name!r} is in the configuration and in the code: take "
                    f"one away (config.callbacks.{callback.name} = false leaves out that of the "
                    "code), or give one another name"
                )
            self.append(callback)

    def append(self, callback: Callback) -> None:
        """Add a callback; it takes the place of a default one of its name.

        One whose name the configuration leaves out is not added.
        """
        self._refuse_in_run()
        others = [
            other
            for other in self._all
            if other not in self._defaults or other.name != getattr(callback, "name", None)
        ]
        self._check(callback, others)
        self._all = self._kept([*others, callback])
        self.rebuild()

    def remove(self, callback: Callback | str) -> None:
        """Take out a callback, given itself or its name."""
        self._refuse_in_run()
        found = self[callback] if isinstance(callback, str) else callback
        if not any(other is found for other in self._all):
            raise CallbackError(f"{type(found).__name__} {found.name!r} is not among the callbacks")
        self._all = [other for other in self._all if other is not found]
        self.rebuild()

    def rebuild(self) -> None:
        """Look again which hooks the callbacks override, on the class or on the instance."""
        self._all.sort(key=lambda callback: callback.priority)
        for hook in HOOKS:
            base = getattr(Callback, hook)
            methods = [(callback, getattr(callback, hook)) for callback in self._all]
            self._tables[hook] = tuple(
                (callback, method)
                for callback, method in methods
                if getattr(method, "__func__", method) is not base
            )

        self.active = {hook for hook, listeners in self._tables.items() if listeners}

    def __call__(self, hook: str, *args: Any) -> None:
        """Call a hook of every callback that overrides it; an error is raised with a note."""
        for callback, method in self._tables[hook]:
            try:
                method(*args)
            except BaseException as error:
                add_note(error, callback, hook, args[0])
                raise

    def is_active(self, hook: str) -> bool:
        """Whether any callback overrides a hook."""
        return bool(self._tables[hook])

    def call_all(self, hook: str, callbacks: Iterable[Callback], *args: Any) -> list[BaseException]:
        """Call a hook of each callback, whatever the others raise; returns what they raised."""
        errors: list[BaseException] = []
        for callback in callbacks:
            try:
                getattr(callback, hook)(*args)
            except BaseException as error:
                add_note(error, callback, hook, args[0])
                errors.append(error)
        return errors

    def __getitem__(self, key: int | str) -> Callback:
        if isinstance(key, int):
            return self._all[key]
        for callback in self._all:
            if callback.name == key:
                return callback
        if key in self._left_out:
            raise CallbackError(f"config.callbacks.{key} is false: the callback is left out")
        names = [callback.name for callback in self._all]
        raise CallbackError(f"there is no callback named {key!r}: {did_you_mean(key, names)}")

    def __contains__(self, callback: object) -> bool:
        return any(callback is other or callback == other.name for other in self._all)

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Callbacks([{', '.join(callback.name for callback in self._all)}])"

    # State

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each callback by name, and those that no callback of now has claimed."""
        return {callback.name: callback.state_dict() for callback in self._all} | self._unclaimed

    def load_state_dict(
        self, states: Mapping[str, dict[str, Any]], *, strict: bool = True
    ) -> tuple[list[str], str]:
        """Give each callback its state by name.

        Returns:
            The states that did not load, if `strict` is not set; and a line on which callbacks came
            and went, empty where they are the same.

        Raises:
            CheckpointError: A state does not load, and `strict` is set.
        """
        names = {callback.name for callback in self._all}
        problems: list[str] = []
        for callback in [callback for callback in self._all if callback.name in states]:
            try:
                callback.load_state_dict(states[callback.name])
            except Exception as error:
                problems.append(f"the state of callback {callback.name!r} does not load: {error!r}")
                if strict:
                    raise CheckpointError(problems[-1]) from error
        self._unclaimed = {name: state for name, state in states.items() if name not in names}
        gone = sorted(name for name, state in self._unclaimed.items() if state)
        lists = [("new", sorted(names - states.keys())), ("gone", gone)]
        return problems, "; ".join(f"{word}: {', '.join(found)}" for word, found in lists if found)

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Give all callbacks back the state that they had, where the block raises."""
        states, unclaimed = self.state_dict(), self._unclaimed
        try:
            yield
        except BaseException:
            self.load_state_dict(states, strict=False)
            self._unclaimed = unclaimed
            raise

    def _kept(self, callbacks: list[Callback]) -> list[Callback]:
        return [callback for callback in callbacks if callback.name not in self._left_out]

    def _check(self, callback: object, others: list[Callback]) -> None:
        if not isinstance(callback, Callback):
            hint = f": write {callback.__name__}()" if isinstance(callback, type) else ""
            raise CallbackError(f"{callback!r} is not a danling.Callback{hint}")
        for other in others:
            if other.name == callback.name:
                kinds = f"{type(other).__name__} and {type(callback).__name__}"
                raise CallbackError(
                    f"two callbacks are named {callback.name!r} ({kinds}): set `name` on one, "
                    "it is the key of its state in checkpoints"
                )

    def _refuse_in_run(self) -> None:
        if self.in_run:
            raise RunError("callbacks are added and removed before or between runs, not during one")


def add_note(error: BaseException, callback: Callback, hook: str, runner: Any) -> None:
    """Say on an error which callback raised it, where and when."""
    error.add_note(
        f"raised by {type(callback).__name__} ({callback.name!r}) in {hook}, "
        f"epoch {runner.epoch}, global step {runner.global_step}"
    )


_CLASS = "callback"  # the argument that tells the class of an entry with a name of its own


@dataclass(frozen=True)
class Configured:
    """The callbacks that a configuration names.

    Attributes:
        callbacks: New instances, in the order of the configuration.
        left_out: The names of those that shall not be there.
        watching: The entries, by their names, that change nothing of what a run computes.
        entries: The entries that were read, in their full form.
    """

    callbacks: tuple[Callback, ...] = ()
    left_out: frozenset[str] = frozenset()
    watching: frozenset[str] = frozenset()
    entries: Mapping[str, Any] = field(default_factory=dict)

    def check_unchanged(self, config: Config) -> None:
        """Refuse callbacks that were configured after those of the configuration were made.

        Raises:
            ConfigError: The configuration names other callbacks now.
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
        ConfigError: An argument is unknown, missing, or has another type.
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
