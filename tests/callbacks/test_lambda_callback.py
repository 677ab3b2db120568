from __future__ import annotations

import pytest

from danling.callback import Callback, Priority
from danling.callbacks.lambda_callback import LambdaCallback
from danling.errors import CallbackError, RunError
from danling.runner.callbacks import Callbacks
from danling.testing import CallbackContract, TinyRunner


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

    assert callbacks.is_active("on_epoch_end")
    assert not callbacks.is_active("on_step")


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


# As decorators of functions: runner.on("step")


def test_a_decorated_function_hears_its_hook_and_stays_a_function():
    runner = TinyRunner({"max_epochs": 2})
    heard: list[object] = []

    @runner.on("epoch_end")
    @runner.on("on_evaluate_end")
    def note(runner, *arguments):
        heard.append((runner.epoch, *arguments[:1]))

    runner.train()

    assert heard == [(0, "val"), (1,), (1, "val"), (2,)]
    note(runner)
    assert heard[-1] == (2,)


def test_a_decorated_function_has_a_name_and_a_priority():
    runner = TinyRunner()
    order: list[str] = []

    @runner.on("step")
    def late(runner):
        order.append("late")

    runner.on("step", priority=Priority.HIGH)(lambda runner: order.append("early"))
    runner.callbacks["late_on_step"]
    runner.config.max_steps = 1
    runner.train()

    assert order == ["early", "late"]
    runner.callbacks.remove("late_on_step")
    assert [callback.name for callback in runner.callbacks] == ["<lambda>_on_step"]


def test_what_cannot_be_attached_is_refused_where_it_is_decorated():
    runner = TinyRunner()
    runner.on("step")(print)

    with pytest.raises(CallbackError, match="on_steep is not a hook: did you mean 'on_step'"):
        runner.on("steep")(print)
    with pytest.raises(CallbackError, match=r"is called with \(runner, split, result\)"):
        runner.on("evaluate_end")(lambda runner: None)
    with pytest.raises(CallbackError, match="two callbacks are named 'print_on_step'"):
        runner.on("step")(print)
    with runner, pytest.raises(RunError, match="before or between runs"):
        runner.on("epoch_end")(print)


class TestContract(CallbackContract):
    def make(self):
        return LambdaCallback(on_step=lambda runner: None)
