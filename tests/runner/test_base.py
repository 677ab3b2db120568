"""A run opens and closes, whatever goes wrong in it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from danling import AccelerateRunner, BaseRunner, Callback, Config
from danling.callback import HOOKS
from danling.errors import ConfigError, RunError
from danling.testing import RecordingCallback, TinyRunner

IN_A_RUN = tuple(hook for hook in HOOKS if hook not in ("on_save", "on_load", "on_exception"))
CONFIG = {"max_epochs": 1, "log_interval": 2}


class Boom(Exception):
    """What a callback raises."""


class Watching(Callback):
    """Counts its setups and teardowns, and fails in one hook, and in others on request."""

    def __init__(self, name: str, order: list[str], fails: tuple[str, ...] = ()):
        self.name, self.order, self.exceptions = name, order, 0
        for hook in fails:
            setattr(self, hook, lambda runner, *_, hook=hook: self.fail(hook))

    def fail(self, hook):
        if hook in ("on_setup", "on_teardown"):
            self.order.append(f"{hook} {self.name}")
        if hook == "on_exception":
            self.exceptions += 1
        raise Boom(f"{self.name} in {hook}")

    def on_setup(self, runner):
        self.order.append(f"on_setup {self.name}")

    def on_exception(self, runner, error):
        self.exceptions += 1

    def on_teardown(self, runner):
        self.order.append(f"on_teardown {self.name}")


def trains_and_predicts(runner: TinyRunner) -> None:
    with runner:
        runner.train()
        runner.predict()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("hook", IN_A_RUN)
def test_every_callback_is_torn_down_once_whichever_fails_wherever(hook, place):
    order: list[str] = []
    callbacks = [
        Watching(name, order, (hook,) if i == place else ()) for i, name in enumerate("abc")
    ]
    runner = TinyRunner(CONFIG, callbacks=callbacks)
    went_on = False

    with pytest.raises(Boom) as raised:
        trains_and_predicts(runner)
        went_on = True

    started = "abc"[: place + 1] if hook == "on_setup" else "abc"
    expected = [f"on_setup {name}" for name in started]
    expected += [f"on_teardown {name}" for name in reversed(started)]
    assert str(raised.value) == f"{'abc'[place]} in {hook}"
    assert order == expected
    assert not went_on
    assert runner.status == "failed"
    assert not runner.in_run
    note = f"raised by Watching ({'abc'[place]!r}) in {hook}, epoch {runner.epoch}, global step "
    assert raised.value.__notes__[0].startswith(note)
    told = 0 if hook == "on_teardown" else 1
    assert [callback.exceptions for callback in callbacks] == [told] * 3


@pytest.mark.parametrize("hook", IN_A_RUN)
def test_the_first_error_stays_in_front_of_those_of_the_cleaning_up(hook):
    order: list[str] = []
    callbacks = [
        Watching("early", order, ("on_exception", "on_teardown")),
        Watching("broken", order, (hook, "on_exception")),
        Watching("late", order, ("on_teardown",)),
    ]
    runner = TinyRunner(CONFIG, callbacks=callbacks)

    with pytest.raises(Boom) as raised:
        trains_and_predicts(runner)

    first = "late in on_teardown" if hook == "on_teardown" else f"broken in {hook}"
    notes = "\n".join(raised.value.__notes__)
    expected = {"early in on_teardown"}
    if hook == "on_teardown":
        expected |= {"broken in on_teardown"}
    else:
        expected |= {"early in on_exception", "broken in on_exception"}
        expected |= set() if hook == "on_setup" else {"late in on_teardown"}
    assert str(raised.value) == first
    assert {line for line in expected if f"and then Boom: {line}; raised by" in notes} == expected
    assert notes.count("and then") == len(expected)


@pytest.mark.parametrize("hook", IN_A_RUN)
def test_a_runner_trains_again_after_a_callback_s_error(hook):
    class Once(Callback):
        def __init__(self):
            self.failed = False
            setattr(self, hook, self.fail)

        def fail(self, runner, *_):
            if not self.failed:
                self.failed = True
                raise Boom

    runner = TinyRunner(CONFIG, callbacks=[Once()])
    with pytest.raises(Boom):
        trains_and_predicts(runner)

    trains_and_predicts(runner)

    assert runner.epoch == 1
    assert runner.status == "finished"


def test_the_body_s_error_reaches_the_user_with_what_went_wrong_after_it():
    order: list[str] = []
    callbacks = [Watching("clumsy", order, ("on_exception", "on_teardown"))]

    with pytest.raises(ZeroDivisionError) as raised, TinyRunner(callbacks=callbacks):
        raise ZeroDivisionError("mine")

    assert str(raised.value) == "mine"
    assert [note.partition(";")[0] for note in raised.value.__notes__] == [
        "and then Boom: clumsy in on_exception",
        "and then Boom: clumsy in on_teardown",
    ]


def test_a_failed_script_exits_non_zero_with_its_first_error_last():
    script = """
    import danling
    from danling.testing import TinyRunner

    class Broken(danling.Callback):
        def on_step(self, runner):
            raise KeyError("mine")
        def on_teardown(self, runner):
            raise OSError("and this")

    TinyRunner(callbacks=[Broken()]).train()
    print("went on")
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        "KeyError: 'mine'\nraised by Broken ('broken') in on_step, epoch 0, global step 1\nand "
        in (done.stderr)
    )


# Status


class Status(Callback):
    """Notes the status at teardown."""

    def on_teardown(self, runner):
        self.status = runner.status


def ends_in(config=None, *callbacks) -> str | None:
    status = Status()
    runner = TinyRunner(config, callbacks=[status, *callbacks])
    assert runner.status is None
    with contextlib.suppress(BaseException):
        runner.train()
    assert runner.status == status.status
    return status.status


def raising(hook: str, error: BaseException) -> Callback:
    def fail(runner, *_):
        raise error

    callback = Callback()
    setattr(callback, hook, fail)
    return callback


def stopping(action) -> Callback:
    callback = Callback()
    callback.on_step = action
    return callback


def test_the_status_tells_how_a_run_ended():
    assert ends_in() == "finished"
    assert ends_in({"max_steps": 2}) == "finished"
    assert ends_in(None, stopping(lambda runner: runner.stop("enough"))) == "stopped"
    assert ends_in(None, raising("on_step", Boom())) == "failed"
    assert ends_in(None, raising("on_setup", Boom())) == "failed"
    assert ends_in(None, raising("on_teardown", Boom())) == "failed"
    assert ends_in(None, raising("on_step", KeyboardInterrupt())) == "interrupted"
    assert ends_in(None, stopping(lambda r: r.interrupt(signal.SIGTERM))) == "preempted"
    assert ends_in(None, stopping(lambda r: r.interrupt(signal.SIGINT))) == "interrupted"


def test_the_status_of_an_open_run_is_running():
    with TinyRunner() as runner:
        assert runner.status == "running"
        assert runner.in_run


def test_a_signal_ends_the_run_with_its_exit_code():
    runner = TinyRunner(callbacks=[stopping(lambda r: r.interrupt(signal.SIGTERM))])
    with pytest.raises(SystemExit) as raised:
        runner.train()

    assert raised.value.code == 128 + signal.SIGTERM
    assert runner.stop_reason == "signal SIGTERM"
    assert runner.global_step == 1
    with pytest.raises(KeyboardInterrupt):
        TinyRunner(callbacks=[stopping(lambda r: r.interrupt(signal.SIGINT))]).train()


def test_a_stop_is_forgotten_when_the_next_run_opens():
    stop = stopping(lambda runner: runner.stop("enough"))
    runner = TinyRunner(callbacks=[stop])
    runner.train()
    runner.callbacks.remove(stop)

    runner.train()

    assert runner.stop_reason is None
    assert (runner.status, runner.epoch) == ("finished", 2)


# Callbacks and runners


def test_one_callback_in_two_runners_leaks_nothing():
    recording = RecordingCallback()
    first, second = (TinyRunner(CONFIG, callbacks=[recording]) for _ in range(2))

    first.train()
    heard = list(recording.events)
    recording.events.clear()
    second.train()

    assert recording.events == heard
    assert first.results == second.results
    assert first.global_step == second.global_step == 4


def test_two_callbacks_of_one_class_keep_states_of_their_own():
    class Best(Callback):
        def __init__(self, monitor):
            self.name, self.monitor, self.values = f"best_{monitor}", monitor, []

        def on_epoch_end(self, runner):
            self.values.append(runner.latest_result["val"][self.monitor])

        def state_dict(self):
            return {"values": self.values}

    runner = TinyRunner(callbacks=[Best("loss"), Best("accuracy")])
    runner.train()

    states = {callback.name: callback.state_dict() for callback in runner.callbacks}
    assert set(states) == {"best_loss", "best_accuracy"}
    assert states["best_loss"]["values"] == [result["val"]["loss"] for result in runner.results]
    assert states["best_loss"] != states["best_accuracy"]


def test_a_runner_without_callbacks_writes_nothing_at_all(tmp_path):
    TinyRunner().train()

    assert os.listdir(tmp_path) == []


def test_a_run_without_a_directory_says_who_makes_it():
    runner = TinyRunner()

    assert not runner.has_dir
    for attribute in ("dir", "checkpoint_dir", "log_path", "paths", "checkpoints"):
        with pytest.raises(RunError, match="RunDirectory makes it when the run opens"):
            getattr(runner, attribute)


def test_the_logger_is_there_before_anything_is_set_up():
    runner = TinyRunner()

    runner.logger.info("nobody listens")

    assert isinstance(runner.logger, logging.Logger)


# Configuration


def test_the_runner_works_on_a_copy_of_the_configuration():
    config = Config(seed=0, max_epochs=1)
    runner = TinyRunner(config)
    runner.config.max_epochs = 2

    assert config.max_epochs == 1
    assert runner.config is not config


def test_the_configuration_is_frozen_while_a_run_is_open():
    runner = TinyRunner()

    with runner, pytest.raises((ConfigError, AttributeError, TypeError)):
        runner.config.max_epochs = 9
    runner.config.max_epochs = 9

    assert runner.config.max_epochs == 9


def test_the_configuration_tells_the_state_of_the_run():
    runner = TinyRunner({"max_epochs": 1})
    runner.train()

    assert (runner.config.epoch, runner.config.global_step) == (1, 4)
    assert runner.config.run_id == runner.run_id
    assert runner.config.id == runner.id


def test_values_that_cannot_be_written_are_refused_before_anything_happens():
    with pytest.raises(ConfigError, match=r"optim\.betas") as raised:
        AccelerateRunner({"optim": {"betas": torch.zeros(2)}, "where": object()})

    assert "where" in str(raised.value)


def test_a_base_runner_opens_and_closes_without_a_platform():
    recording = RecordingCallback()

    with BaseRunner({"seed": 0}, callbacks=[recording], default_callbacks=False) as runner:
        assert runner.is_main_process
        assert (runner.rank, runner.world_size, runner.distributed) == (0, 1, False)
        assert runner.progress != runner.progress
        assert runner.monitor == "train/loss"

    assert recording.hooks == ["on_setup", "on_teardown"]
    assert runner.status == "finished"


def test_attributes_of_a_fresh_runner():
    runner = TinyRunner({"accelerate": {"gradient_accumulation_steps": 3}})

    assert (runner.epoch, runner.global_step, runner.batch_index) == (0, 0, 0)
    assert (runner.results, runner.scores) == ([], [])
    assert runner.latest_result is runner.best_result is None
    assert runner.latest_score is runner.best_score is None
    assert not runner.is_best
    assert (runner.batch_size, runner.accum_steps, runner.batch_size_equivalent) == (4, 3, 12)
    assert (runner.batches_per_epoch, runner.steps_per_epoch, runner.total_steps) == (4, 2, 4)
    assert runner.progress == 0.0
    assert runner.monitor == "val/loss"
    assert runner.device == torch.device("cpu")
    assert runner.unwrapped_model is runner.model
    assert runner.optimizers == [runner.optimizer]
    assert (runner.local_rank, runner.is_local_main_process) == (0, True)
    assert len(runner.run_id) == len(runner.experiment_id) == 32
    assert runner.id.count("-") == 2


def test_progress_is_the_share_of_the_run():
    seen = []

    class Watching(Callback):
        def on_step(self, runner):
            seen.append(runner.progress)

    TinyRunner({"max_steps": 5}, callbacks=[Watching()]).train()

    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_notebook_and_a_console_show_what_a_runner_has_done(tmp_path):
    runner = TinyRunner({"project_root": str(tmp_path / "<runs>")}, default_callbacks=True)

    before, shown_before = repr(runner), runner._repr_html_()
    runner.train()

    assert before == "TinyRunner(status=None, epoch=0, global_step=0)"
    assert "not started: epoch 0, step 0" in shown_before
    assert f"epoch=2, global_step={runner.global_step}, dir='{runner.dir}'" in repr(runner)
    shown = runner._repr_html_()
    assert f"finished: epoch 2, step {runner.global_step}" in shown
    assert runner.best_result is not None
    assert f"(epoch {runner.best_result['epoch']}, step" in shown
    assert runner.dir.name in shown
    assert "&lt;runs&gt;" in shown
