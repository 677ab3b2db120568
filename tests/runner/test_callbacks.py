from __future__ import annotations

import sys

import pytest

from danling.callback import HOOKS, Callback, Priority
from danling.errors import CallbackError, RunError
from danling.runner.callbacks import Callbacks
from danling.testing import TinyRunner


class Place:
    """Stands for a runner where only its counters matter."""

    epoch, global_step = 3, 120


class Noting(Callback):
    def __init__(self, name: str, notes: list[str], priority: int = Priority.NORMAL):
        self.name, self.notes, self.priority = name, notes, priority

    def on_step(self, runner):
        self.notes.append(self.name)


def names(callbacks: Callbacks) -> list[str]:
    return [callback.name for callback in callbacks]


def test_callbacks_run_by_priority_then_in_the_order_of_the_list():
    notes: list[str] = []
    last = Noting("last", notes, Priority.LOWEST)
    callbacks = Callbacks([last, Noting("b", notes), Noting("a", notes), Noting("c", notes, 49)])

    callbacks("on_step", Place())

    assert notes == names(callbacks) == ["c", "b", "a", "last"]


def test_a_priority_changed_between_runs_counts():
    notes: list[str] = []
    callbacks = Callbacks([Noting("a", notes), Noting("b", notes)])
    callbacks["b"].priority = Priority.HIGH

    callbacks.rebuild()
    callbacks("on_step", Place())

    assert notes == ["b", "a"]


def test_the_list_is_like_a_list():
    notes: list[str] = []
    first, second = Noting("first", notes), Noting("second", notes)
    callbacks = Callbacks([first])

    callbacks.append(second)

    assert len(callbacks) == 2
    assert list(callbacks) == [first, second]
    assert callbacks[0] is first
    assert callbacks["second"] is second
    assert second in callbacks
    assert "second" in callbacks
    assert "third" not in callbacks
    assert repr(callbacks) == "Callbacks([first, second])"
    callbacks.remove("first")
    callbacks.remove(second)
    assert list(callbacks) == []
    callbacks("on_step", Place())
    assert notes == []


def test_a_callback_that_is_not_there_is_named_with_the_nearest():
    callbacks = Callbacks([Noting("recording", [])])

    with pytest.raises(CallbackError, match="no callback named 'recordin': did you mean 'recordi"):
        callbacks["recordin"]
    with pytest.raises(CallbackError, match="no callback named 'recordin'"):
        callbacks.remove("recordin")
    with pytest.raises(CallbackError, match="Noting 'other' is not among the callbacks"):
        callbacks.remove(Noting("other", []))


@pytest.mark.parametrize("stranger", [print, "early_stopping", None])
def test_what_is_no_callback_is_refused(stranger):
    with pytest.raises(CallbackError, match=r"is not a danling\.Callback"):
        Callbacks([stranger])
    with pytest.raises(CallbackError, match=r"is not a danling\.Callback"):
        Callbacks().append(stranger)


def test_a_class_in_the_list_is_told_to_be_an_instance():
    with pytest.raises(CallbackError, match=r"write Callback\(\)"):
        TinyRunner(callbacks=[Callback])  # type: ignore[list-item]  # the mistake


def test_a_callback_in_place_of_a_list_is_told_to_be_in_one():
    with pytest.raises(CallbackError, match=r"callbacks=\[Callback\(\)\]"):
        TinyRunner(callbacks=Callback())  # type: ignore[arg-type]  # the mistake


def test_two_callbacks_of_one_name_are_refused_with_the_way_out():
    pair = [Noting("same", []), Noting("same", [])]

    with pytest.raises(CallbackError, match=r"two callbacks are named 'same' .*set `name` on one"):
        Callbacks(pair)
    callbacks = Callbacks(pair[:1])
    with pytest.raises(CallbackError, match="two callbacks are named 'same'"):
        callbacks.append(pair[1])
    pair[1].name = "other"
    callbacks.append(pair[1])

    assert names(callbacks) == ["same", "other"]


def test_a_user_s_callback_takes_the_place_of_a_default_one_of_its_name():
    own, default, other = Noting("bar", []), Noting("bar", []), Noting("log", [])

    at_once = Callbacks([own], defaults=[default, other])
    later = Callbacks(defaults=[default, other])
    later.append(own)

    assert list(at_once) == list(later) == [other, own]


def test_a_second_callback_of_the_user_s_is_refused_even_where_the_first_replaced_a_default_one():
    callbacks = Callbacks([Noting("bar", [])], defaults=[Noting("bar", [])])

    with pytest.raises(CallbackError, match="two callbacks are named 'bar'"):
        callbacks.append(Noting("bar", []))


def test_hooks_set_on_an_instance_are_heard():
    heard = []
    callback = Callback()
    callback.on_step = lambda runner: heard.append(runner.global_step)

    Callbacks([callback])("on_step", Place())

    assert heard == [120]


def test_a_hook_set_on_an_instance_between_runs_is_heard():
    heard = []
    callback = Noting("late", [])
    runner = TinyRunner({"max_epochs": 1}, callbacks=[callback])
    runner.train()
    callback.on_epoch_end = lambda runner: heard.append(runner.epoch)
    runner.config.max_epochs = 2

    runner.train()

    assert heard == [2]


def test_hooks_that_nobody_overrides_cost_no_call():
    calls = []

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_name.startswith("on_"):
            calls.append(frame.f_code.co_name)

    idle = [type(f"Idle{index}", (Callback,), {})() for index in range(20)]
    callbacks = Callbacks([*idle, Noting("busy", [])])
    sys.setprofile(count)
    try:
        for hook in HOOKS:
            callbacks(hook, Place())
    finally:
        sys.setprofile(None)

    assert calls == ["on_step"]
    assert callbacks.is_active("on_step")
    assert not callbacks.is_active("on_log")


def test_an_error_keeps_its_type_and_says_where_it_came_from():
    class Broken(Callback):
        def on_step(self, runner):
            raise KeyError("lr")

    with pytest.raises(KeyError) as raised:
        Callbacks([Broken()])("on_step", Place())

    assert raised.value.__notes__ == [
        "raised by Broken ('broken') in on_step, epoch 3, global step 120"
    ]


def test_all_are_called_whatever_the_others_raise():
    class Broken(Callback):
        def on_teardown(self, runner):
            raise KeyboardInterrupt

    torn = []
    fine = Callback()
    fine.name = "fine"
    fine.on_teardown = lambda runner: torn.append("fine")
    callbacks = Callbacks([Broken(), fine])

    errors = callbacks.call_all("on_teardown", callbacks, Place())

    assert [type(error) for error in errors] == [KeyboardInterrupt]
    assert torn == ["fine"]


@pytest.mark.parametrize("change", ["append", "remove"])
def test_the_list_stays_as_it_is_during_a_run(change):
    kept, other = Noting("kept", []), Noting("other", [])
    runner = TinyRunner(callbacks=[kept])

    with runner, pytest.raises(RunError, match="before or between runs, not during one"):
        getattr(runner.callbacks, change)(other if change == "append" else kept)
    runner.callbacks.append(other)

    assert names(runner.callbacks) == ["kept", "other"]
