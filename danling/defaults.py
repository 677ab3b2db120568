"""The callbacks that there are without an import: those every runner has, and those with names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from danling.callback import Callback
from danling.errors import ConfigError, did_you_mean

__all__ = [
    "ENTRY_POINTS",
    "callback_class",
    "callback_names",
    "default_callbacks",
    "function_callback",
]


ENTRY_POINTS: Final = "danling.callbacks"
"""The group of entry points in which an installed package offers its callbacks."""


def default_callbacks() -> list[Callback]:
    """New instances of the default callbacks."""
    from danling.callbacks.logging import Logging
    from danling.callbacks.model_checkpoint import ModelCheckpoint
    from danling.callbacks.preemption import Preemption
    from danling.callbacks.progress_bar import ProgressBar
    from danling.callbacks.results import Results
    from danling.callbacks.run_directory import RunDirectory
    from danling.callbacks.run_record import RunRecord

    return [
        RunDirectory(),
        Logging(),
        RunRecord(),
        Results(),
        ModelCheckpoint(),
        ProgressBar(),
        Preemption(),
    ]


def function_callback(hook: str, function: Callable[..., None], priority: int) -> Callback:
    """A callback that calls a function at a hook, named after both.

    Raises:
        CallbackError: There is no such hook, or the function does not take its arguments.

    Example:
        >>> def greet(runner): ...
        >>> function_callback("epoch_end", greet, 50).name
        'greet_on_epoch_end'
    """
    from danling.callbacks.lambda_callback import LambdaCallback

    full = hook if hook.startswith("on_") else f"on_{hook}"
    called = getattr(function, "__name__", type(function).__name__)
    callback = LambdaCallback(name=f"{called}_{full}", **{full: function})
    callback.priority = priority
    return callback


def callback_names() -> list[str]:
    """The names that `callback_class` knows: ready-made callbacks, then those of packages."""
    from danling.callbacks import classes_by_name

    ready_made = list(classes_by_name())
    offered = sorted({point.name for point in entry_points(group=ENTRY_POINTS)})
    return [*ready_made, *(name for name in offered if name not in ready_made)]


def callback_class(name: str, where: str = "callbacks") -> type[Callback]:
    """The class of callbacks that a name stands for.

    Nothing but what the name stands for is imported. A ready-made callback is never replaced by
    one of a package.

    Args:
        name: The name of a ready-made callback (`early_stopping`), one that an installed package
            offers, or `package.module:Class` for any other.
        where: The key of the configuration that has the name, for messages.

    Raises:
        ConfigError: There is no such callback, two packages offer it, or it cannot be imported.

    Example:
        >>> callback_class("early_stopping").__name__
        'EarlyStopping'
        >>> callback_class("erly_stopping", "config.callbacks")
        Traceback (most recent call last):
        danling.errors.ConfigError: config.callbacks: there is no callback 'erly_stopping'; did \
you mean 'early_stopping'?
    """
    import danling.callbacks

    ready_made = danling.callbacks.classes_by_name()
    if name in ready_made:
        return _checked(getattr(danling.callbacks, ready_made[name]), name, where)
    if ":" in name:
        return _imported(EntryPoint(name, name, ENTRY_POINTS), "", where)
    offers = list(entry_points(group=ENTRY_POINTS, name=name))
    owners = sorted({_owner(point) for point in offers})
    if len({point.value for point in offers}) > 1:
        raise ConfigError(
            f"{where}: {name!r} is offered by {' and '.join(owners)}; write which one is meant: "
            f"{{{name}: {{callback: '{offers[0].value}'}}}}"
        )
    if offers:
        return _imported(offers[0], f" of {owners[0]}", where)
    by_class = {written: known for known, written in ready_made.items()}
    near = (
        f"did you mean {by_class[name]!r}?"
        if name in by_class
        else did_you_mean(name, callback_names())
    )
    raise ConfigError(f"{where}: there is no callback {name!r}; {near}")


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def _imported(point: EntryPoint, owner: str, where: str) -> type[Callback]:
    module, _, attribute = point.value.partition(":")
    try:
        found: Any = import_module(module.strip())
        for part in attribute.strip().split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}: the callback {point.name!r}{owner} cannot be imported from {point.value}: "
            f"{error}"
        ) from error
    return _checked(found, point.name, where)


def _checked(found: Any, name: str, where: str) -> type[Callback]:
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ConfigError(f"{where}: {name!r} is {found!r}, and no class of danling.Callback")
    return found
