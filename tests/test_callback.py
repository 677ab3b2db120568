from __future__ import annotations

import re

import pytest

from danling.callback import FOREIGN_HOOKS, HOOKS, Callback, Priority
from danling.testing import RecordingCallback, TinyRunner


def test_the_hooks_are_those_of_the_class_and_each_is_documented():
    assert tuple(name for name in vars(Callback) if name.startswith("on_")) == HOOKS
    for hook in HOOKS:
        assert getattr(Callback, hook).__doc__


def test_the_picture_in_the_documentation_shows_every_hook_in_firing_order():
    picture = (Callback.__doc__ or "").partition("Hooks of one event run by")[0]
    drawn = list(dict.fromkeys(re.findall(r"\bon_\w+", picture)))
    recording = RecordingCallback()
    config = {"max_epochs": 1, "evaluate_every": "1 steps", "dataloader": {"batch_size": 8}}
    runner = TinyRunner(config, callbacks=[recording])
    runner.train()

    fired = list(dict.fromkeys(recording.hooks))
    fired.remove("on_log")  # has no place of its own in the picture
    assert set(HOOKS) - set(drawn) == {"on_predict_start", "on_predict_batch_end", "on_predict_end"}
    assert [hook for hook in drawn if hook in fired] == fired


def test_a_function_that_is_no_hook_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match=r"^Typo.on_epoch_ends is not a hook: did you mean 'on_epo"):

        class Typo(Callback):
            def on_epoch_ends(self, runner): ...


def test_the_first_name_of_a_hook_that_nothing_is_near_to_lists_all():
    with pytest.raises(TypeError, match="valid are 'on_batch_end', 'on_batch_start'"):

        class Odd(Callback):
            def on_zzz(self, runner): ...


def test_a_subclass_of_a_subclass_is_checked_too():
    class Fine(Callback):
        def on_step(self, runner): ...

    with pytest.raises(TypeError, match="on_train_begin"):

        class Typo(Fine):
            def on_train_begin(self, runner): ...


def test_values_that_are_no_functions_may_be_named_as_they_like():
    class Fine(Callback):
        on_disk = True

    assert Fine().on_disk


class HTTPLogger(Callback): ...


class EarlyStop2(Callback): ...


class Named(Callback):
    name = "set_by_hand"


class Inheriting(Named): ...


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (HTTPLogger, "http_logger"),
        (EarlyStop2, "early_stop2"),
        (Named, "set_by_hand"),
        (Inheriting, "set_by_hand"),
    ],
)
def test_the_name_is_set_by_hand_or_made_from_the_class(kind, name):
    assert kind.name == kind().name == name


def test_a_name_made_from_a_class_is_not_inherited():
    class Base(Callback): ...

    class Derived(Base): ...

    assert (Base.name, Derived.name) == ("base", "derived")


def test_a_name_may_be_set_on_an_instance():
    callback = EarlyStop2()
    callback.name = "other"

    assert EarlyStop2.name == "early_stop2"
    assert callback.name == "other"


def test_priorities_are_integers_in_order():
    levels = list(Priority)

    assert levels == sorted(levels)
    assert Priority.HIGHEST < 1 < Priority.NORMAL == Callback.priority < Priority.LOWEST


def test_a_callback_has_no_state_unless_it_says_so():
    callback = Callback()

    callback.load_state_dict({})

    assert callback.state_dict() == {}


@pytest.mark.parametrize("name", sorted(FOREIGN_HOOKS))
def test_the_hook_of_another_library_is_answered_with_ours(name):
    assert name not in HOOKS
    assert FOREIGN_HOOKS[name] in HOOKS
    with pytest.raises(
        TypeError, match=f"^Ported.{name} is not a hook: here it is called '{FOREIGN_HOOKS[name]}'"
    ):
        type("Ported", (Callback,), {name: lambda self, runner: None})


def test_common_hooks_of_other_libraries_mean_the_same_moment():
    pairs = {
        "on_train_epoch_end": "on_epoch_end",
        "on_train_batch_end": "on_batch_end",
        "on_validation_end": "on_evaluate_end",
        "on_epoch_begin": "on_epoch_start",
        "on_step_end": "on_step",
    }
    assert {name: FOREIGN_HOOKS[name] for name in pairs} == pairs


@pytest.mark.parametrize(
    ("hook", "function", "message"),
    [
        (
            "on_train_end",
            lambda self: None,
            r"(self) cannot be called as a hook: define on_train_end(self, runner)",
        ),
        ("on_step", lambda: None, "define on_step(self, runner)"),
        ("on_epoch_end", lambda self, runner, epoch: None, "define on_epoch_end(self, runner)"),
        (
            "on_batch_end",
            lambda self, runner, batch: None,
            "define on_batch_end(self, runner, batch, output)",
        ),
        ("on_evaluate_end", lambda self, runner, result: None, "(self, runner, split, result)"),
        ("on_step", lambda self, runner, *, every: None, "define on_step(self, runner)"),
    ],
)
def test_a_hook_with_other_arguments_is_refused_where_it_is_defined(hook, function, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        type("Wrong", (Callback,), {hook: function})


def test_a_hook_may_take_more_than_it_needs_to():
    class Fine(Callback):
        def on_step(self, *args): ...

        def on_batch_end(self, runner, *args, **kwargs): ...

        def on_epoch_end(self, trainer, verbose=False): ...

    assert Fine().name == "fine"
