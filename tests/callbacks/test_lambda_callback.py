from __future__ import annotations

import pytest

from danling.callback import Callback
from danling.callbacks.lambda_callback import LambdaCallback
from danling.errors import CallbackError
from danling.runner.callbacks import Callbacks


def test_a_function_hears_its_hook_with_its_arguments():
    heard: list[object] = []
    callbacks = Callbacks(
        [LambdaCallback(on_batch_end=lambda runner, batch, output: heard.append((batch, output)))]
    )

    callbacks("on_batch_end", "runner", "batch", "output")
    callbacks("on_step", "runner")

    assert heard == [("batch", "output")]


def test_only_the_hooks_that_were_given_are_heard():
    callbacks = Callbacks([LambdaCallback(on_epoch_end=print)])

    assert callbacks.hears("on_epoch_end")
    assert not callbacks.hears("on_step")


def test_a_hook_that_does_not_exist_is_an_error_with_the_nearest():
    with pytest.raises(CallbackError, match="did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)


@pytest.mark.parametrize(
    "function", [lambda: None, lambda runner, batch: None, lambda *, runner: None]
)
def test_a_function_of_other_arguments_is_an_error_at_once(function):
    with pytest.raises(CallbackError, match=r"is called with \(runner\)"):
        LambdaCallback(on_epoch_end=function)


def test_a_function_may_take_more_where_it_has_defaults():
    callback = LambdaCallback(on_epoch_end=lambda runner, seen=(): None, on_step=lambda *args: None)

    assert isinstance(callback, Callback)


def test_several_live_together_under_their_names():
    callbacks = Callbacks(
        [LambdaCallback(on_step=print), LambdaCallback(name="greeter", on_step=print)]
    )

    assert [callback.name for callback in callbacks] == ["lambda", "greeter"]
