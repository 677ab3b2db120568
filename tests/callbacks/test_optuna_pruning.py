from __future__ import annotations

import warnings
from typing import Any

import pytest

from danling.callbacks import OptunaPruning
from danling.errors import CallbackError
from danling.testing import CallbackContract, TinyRunner

optuna: Any = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class TestContract(CallbackContract):
    def make(self):
        return OptunaPruning(optuna.create_study().ask())


def test_a_trial_without_hope_is_pruned_and_the_others_are_not():
    class SecondEpochOfTheSecond(optuna.pruners.BasePruner):  # type: ignore[misc]  # no types here
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 2

    runners: list[TinyRunner] = []

    def objective(trial):
        runners.append(TinyRunner({"max_epochs": 4}, callbacks=[OptunaPruning(trial)]))
        runners[-1].train()
        return runners[-1].best_score

    study = optuna.create_study(pruner=SecondEpochOfTheSecond())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(objective, n_trials=3)

    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [runner.epoch for runner in runners] == [4, 2, 4]
    reported = study.trials[0].intermediate_values
    scores = [result["val"]["loss"] for result in runners[0].results]
    assert reported == dict(enumerate(scores, 1))


def test_another_value_than_the_monitor_is_reported():
    trial = optuna.create_study().ask()
    runner = TinyRunner(callbacks=[OptunaPruning(trial, "val/accuracy")])
    runner.train()

    values = trial.study.get_trials()[0].intermediate_values
    assert list(values.values()) == [result["val"]["accuracy"] for result in runner.results]


def test_what_is_no_trial_is_an_error():
    with pytest.raises(CallbackError, match="give it the trial"):
        OptunaPruning(optuna.create_study())
