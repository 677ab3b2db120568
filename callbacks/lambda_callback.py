"""A callback made of functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from danling.callback import HOOKS, Callback
from danling.errors import CallbackError, did_you_mean

__all__ = ["LambdaCallback"]


class LambdaCallback(Callback):
    """Call a function at a hook, where a class of your own would be too much.

    Args:
        name: The name, to have several in a runner.
        **hooks: The function of each hook, with the arguments of the hook: `on_epoch_end=lambda
            runner: ...`.

    Raises:
        CallbackError: There is no such hook, or the function does not take the hook's arguments.

    Example:
        >>> callback = LambdaCallback(on_epoch_end=lambda runner: print(runner.latest_result))
        >>> LambdaCallback(on_epoch_ends=print)
        Traceback (most recent call last):
        danling.errors.CallbackError: on_epoch_ends is not a hook: did you mean 'on_epoch_end'?
    """

    name = "lambda"

    def __init__(self, *, name: str | None = None, **hooks: Callable[..., None]) -> None:
        self.name = name or type(self).name
        for hook, function in hooks.items():
            _check(hook, function)
            setattr(self, hook, function)


def _check(hook: str, function: Any) -> None:
    if hook not in HOOKS:
        raise CallbackError(f"{hook} is not a hook: {did_you_mean(hook, HOOKS)}")
    arguments = list(inspect.signature(getattr(Callback, hook)).parameters)[1:]
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError):  # a builtin that does not tell its arguments
            return
        raise CallbackError(
            f"LambdaCallback({hook}={function!r}): the hook is called with ({', '.join(arguments)})"
        ) from error
