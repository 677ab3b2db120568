from __future__ import annotations

from pathlib import Path

import pytest

from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.run_directory import RunDirectory
from danling.errors import RunError
from danling.testing import CallbackContract


def test_the_directory_exists_in_every_other_setup(make_runner):
    seen: list[bool] = []
    other = LambdaCallback(on_setup=lambda runner: seen.append(runner.dir.is_dir()))

    make_runner([other, RunDirectory()]).train()

    assert seen == [True]


def test_it_is_named_after_the_run(make_runner, tmp_path: Path):
    runner = make_runner([RunDirectory()], experiment_name="digits", run_name="mlp")

    runner.train()

    assert runner.dir.resolve() == tmp_path / "experiments" / f"digits-mlp-{runner.id}"


def test_two_runs_of_one_configuration_have_two_directories(make_runner):
    first, second = make_runner([RunDirectory()]), make_runner([RunDirectory()])

    first.train()
    second.train()

    assert first.dir != second.dir
    assert first.run_id == second.run_id


def test_without_it_nothing_is_written(make_runner, tmp_path: Path):
    runner = make_runner()

    runner.train()

    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="RunDirectory"):
        _ = runner.dir


def test_a_second_training_goes_on_in_the_directory(make_runner):
    runner = make_runner([RunDirectory()], max_epochs=1)
    runner.train()
    directory = runner.dir

    runner.config.max_epochs = 2
    runner.train()

    assert runner.dir == directory
    assert runner.epoch == 2


def test_the_directory_is_given_back_after_an_exception(make_runner):
    def fail(runner):
        raise ValueError("boom")

    runner = make_runner([RunDirectory(), LambdaCallback(on_step=fail)])
    with pytest.raises(ValueError, match="boom"):
        runner.train()
    runner.callbacks.remove("lambda")

    runner.train()

    assert runner.epoch == 2


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return RunDirectory()
