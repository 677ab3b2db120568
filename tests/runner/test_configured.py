"""Callbacks that a configuration names: in files, on the command line, and in code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import danling.callbacks
from danling import Callback, CallbackError, Config, ConfigError
from danling.callbacks import EarlyStopping, ProgressBar, TensorBoard
from danling.defaults import callback_class, default_callbacks
from danling.testing import Failing, TinyRunner


class Greeter(Callback):
    only_watches = True

    def __init__(self, greeting: str, *names: str, times: int | None = None, sizes: Any = None):
        self.greeting, self.names, self.times, self.sizes = greeting, names, times, sizes


class Scaler(Callback):
    def __init__(self, factor: float, by_epoch: dict[int, float] | None = None, **more: Any):
        self.factor, self.by_epoch, self.more = factor, by_epoch, more


HERE = "tests.runner.test_configured"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def runner_with(callbacks: Any, *given: Callback, **options: Any) -> TinyRunner:
    return TinyRunner({"callbacks": callbacks}, callbacks=given, **options)


def callback(runner: TinyRunner, name: str) -> Any:
    return runner.callbacks[name]


def own(name: str, **arguments: Any) -> dict[str, Any]:
    """An entry of a class of this file."""
    return {name.lower(): {"callback": f"{HERE}:{name}", **arguments}}


# How they are written

FORMS = [
    {"early_stopping": {"patience": 5}, "tensorboard": {}},
    {"early_stopping": {"patience": 5}, "tensorboard": None},
    {"early_stopping": {"patience": 5}, "tensorboard": True},
    [{"early_stopping": {"patience": 5}}, "tensorboard"],
    [{"early_stopping": {"patience": 5}}, {"tensorboard": None}],
    {"early_stopping.patience": 5, "tensorboard": {}},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_is_the_same_configuration_of_the_same_run(form: Any):
    runner = runner_with(form)

    assert [type(each) for each in runner.callbacks] == [EarlyStopping, TensorBoard]
    assert callback(runner, "early_stopping").patience == 5
    assert runner.config.callbacks.to_dict() == {
        "early_stopping": {"patience": 5},
        "tensorboard": {},
    }
    assert runner.run_id == runner_with(FORMS[0]).run_id


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--callbacks.early_stopping.patience", "5"], {"early_stopping": 5}),
        (["--callbacks.early-stopping.patience=5"], {"early_stopping": 5}),
        (["--callbacks", "early_stopping", "tensorboard"], {"early_stopping": 3, "tensorboard": 0}),
        (["--callbacks", "early_stopping"], {"early_stopping": 3}),
        (["--callbacks.tensorboard"], {"tensorboard": 0}),
        (["--callbacks", '[{"early_stopping": {"patience": 5}}]'], {"early_stopping": 5}),
    ],
    ids=str,
)
def test_the_command_line_names_callbacks_and_their_arguments(
    arguments: list[str], expected: dict[str, int]
):
    runner = TinyRunner(Config.parse(arguments))

    found = {each.name: getattr(each, "patience", 0) for each in runner.callbacks}
    assert found == expected


def test_a_flag_changes_what_a_file_says(tmp_path: Path):
    file = tmp_path / "train.yaml"
    file.write_text(
        "callbacks:\n  - early_stopping: {patience: 3, min_delta: 1e-3}\n  - tensorboard\n"
    )

    arguments = ["--config", str(file), "--callbacks.early_stopping.patience", "7"]
    runner = TinyRunner(Config.parse([*arguments, "--no-callbacks.tensorboard"]))

    stopping = callback(runner, "early_stopping")
    assert (stopping.patience, stopping.min_delta) == (7, 1e-3)
    assert "tensorboard" not in runner.callbacks


def test_the_saved_configuration_makes_the_same_run_again(tmp_path: Path):
    runner = runner_with(["tensorboard", {"freeze": {"patterns": ["bias"]}}])

    runner.config.save(tmp_path / "runner.yaml")
    again = TinyRunner(Config.load(tmp_path / "runner.yaml"))

    assert callback(again, "freeze").patterns == ("bias",)
    assert again.run_id == runner.run_id


def test_two_of_one_class_have_names_of_their_own():
    runner = runner_with(
        {"early_stopping": {}, "on_accuracy": {"callback": "early_stopping", "patience": 9}}
    )

    assert [each.name for each in runner.callbacks] == ["early_stopping", "on_accuracy"]
    assert callback(runner, "on_accuracy").patience == 9


def test_any_class_is_named_by_its_module():
    entry = own("Greeter", greeting="hello", names=["Ann", "Bo"], times=2, sizes=[1, {"a": 2}])
    greeter = callback(runner_with(entry), "greeter")

    assert isinstance(greeter, Greeter)
    assert (greeter.greeting, greeter.names, greeter.times) == ("hello", ("Ann", "Bo"), 2)
    assert greeter.sizes == [1, {"a": 2}]
    assert type(greeter.sizes[1]) is dict


def test_arguments_have_the_types_of_the_constructor():
    entry = own("Scaler", factor=1, by_epoch={"0": 0.5, "3": 1}, depth="x")
    scaler = callback(runner_with(entry), "scaler")

    assert type(scaler.factor) is float
    assert scaler.by_epoch == {0: 0.5, 3: 1}
    assert scaler.more == {"depth": "x"}


# What is wrong


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ({"erly_stopping": {}}, r"erly_stopping: there is no callback .* mean 'early_stopping'\?"),
        ({"EarlyStopping": {}}, r"no callback 'EarlyStopping'; did you mean 'early_stopping'\?"),
        (["timr"], r"config\.callbacks\.timr: .*did you mean 'timer'\?"),
        ({"early_stopping": {"patiance": 3}}, r"no argument 'patiance'; did you mean 'patience'\?"),
        ({"early_stopping": {"patience": "x"}}, r"early_stopping\.patience: expected an int"),
        ({"early_stopping": {"mode": "mx"}}, r"\.mode: expected one of 'min', 'max', got 'mx'"),
        ({"early_stopping": {"patience": 0}}, r"config\.callbacks\.early_stopping: .*patience"),
        ({"early_stopping": 3}, r"expected a mapping of arguments, true or false, got 3"),
        ({"tracker": {}}, r"Tracker needs the argument 'tracker'"),
        ({"x": {"callback": 3}}, r"config\.callbacks\.x\.callback: expected a name, got 3"),
        ({"x": {"callback": "nowhere:X"}}, r"cannot be imported from nowhere:X: No module"),
        ({"x": {"callback": f"{HERE}:Nobody"}}, r"has no attribute 'Nobody'"),
        ({"x": {"callback": "json:loads"}}, r"no class of danling\.Callback"),
        (own("Scaler", factor=1, by_epoch={"a": 1}), r"by_epoch: the keys are whole numbers"),
        ({"tiimer": False}, r"no callback 'tiimer'; did you mean 'timer'\?"),
        (["timer", "timer"], r"'timer' is there twice; .*\{second: \{callback: timer"),
        ([{"timer": None, "duration": 3}], r"callbacks\[0\]: .*\{timer: \{duration: \.\.\.\}\}"),
        ([3], r"callbacks\[0\]: expected the name of a callback .* got 3"),
        (3, r"config\.callbacks: expected a mapping"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_with_its_place(callbacks: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        runner_with(callbacks)


def test_a_callback_in_code_and_configuration_is_an_error_with_the_ways_out():
    with pytest.raises(CallbackError, match=r"in the configuration and in the code: take one away"):
        runner_with(["early_stopping"], EarlyStopping())


def test_what_is_configured_later_is_not_ignored():
    runner = runner_with(["early_stopping"])
    runner.config.callbacks = {"timer": {"duration": "1 h"}}

    with pytest.raises(ConfigError, match=r"changed after the runner was made.*callbacks\.append"):
        runner.train()


# With those of the code


def test_they_come_beside_those_of_the_code_and_replace_default_ones():
    runner = runner_with(
        {"early_stopping": {}, "model_checkpoint": {"every": "2 steps"}},
        TensorBoard(),
        default_callbacks=True,
    )

    names = [each.name for each in default_callbacks()]
    assert {each.name for each in runner.callbacks} == {*names, "tensorboard", "early_stopping"}
    assert str(callback(runner, "model_checkpoint").every) == "2 steps"


def test_false_leaves_out_whoever_brings_it():
    off = {"progress_bar": False, "tensorboard": False, "early_stopping": False}
    runner = runner_with(off, TensorBoard(), default_callbacks=True)
    runner.callbacks.append(EarlyStopping())
    runner.callbacks.append(ProgressBar())

    assert not {*off} & {each.name for each in runner.callbacks}
    with pytest.raises(CallbackError, match=r"config\.callbacks\.tensorboard is false"):
        runner.callbacks["tensorboard"]


def test_without_the_key_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch):
    from danling.runner import callbacks

    asked: list[str] = []
    monkeypatch.setattr(callbacks, "callback_class", lambda name, where: asked.append(name))
    runner = TinyRunner()

    assert asked == []
    assert "callbacks" not in runner.config


def test_nobody_calls_the_key_unread():
    runner = runner_with({"timer": {"duration": "1 h"}})

    assert not [key for key in runner.config.unread() if key.startswith("callbacks")]


# The identity of the run


def test_what_only_watches_is_no_part_of_the_identity():
    plain = TinyRunner().run_id

    assert runner_with(["tensorboard"]).run_id == plain
    assert runner_with(own("Greeter", greeting="hello")).run_id == plain
    assert runner_with({"progress_bar": False}, default_callbacks=True).run_id == plain
    assert runner_with({"timer": {"duration": "1 h"}}).run_id == plain


def test_what_may_change_the_training_is():
    ids = [
        TinyRunner().run_id,
        runner_with({"early_stopping": {}}).run_id,
        runner_with({"early_stopping": {"patience": 4}}).run_id,
        runner_with({"early_stopping": False}, EarlyStopping()).run_id,
        runner_with(own("Scaler", factor=1)).run_id,
    ]

    assert len(set(ids)) == len(ids)
    assert runner_with({"early_stopping": {}, "tensorboard": {}}).run_id == ids[1]


def test_a_changed_observer_goes_on_with_the_same_run(tmp_path: Path):
    config = {"project_root": str(tmp_path), "resume": "auto"}
    failing = Failing("on_epoch_end")
    first = TinyRunner(config, callbacks=[failing], default_callbacks=True)
    with pytest.raises(ZeroDivisionError):
        first.train()
    callbacks = {"tensorboard": {}, "progress_bar": False}

    second = TinyRunner({**config, "callbacks": callbacks}, default_callbacks=True)
    second.train()

    assert second.uuid == first.uuid
    assert second.global_step == 8


# Every ready-made callback


@pytest.mark.parametrize("name", danling.callbacks.__all__)
def test_every_ready_made_callback_has_a_name_in_configurations(name: str):
    kind = getattr(danling.callbacks, name)
    known = danling.callbacks._MODULES[name]

    assert callback_class(known) is kind
    assert kind.name == known or name == "LambdaCallback"
    assert "callback" not in inspect.signature(kind).parameters  # it tells the class of an entry
