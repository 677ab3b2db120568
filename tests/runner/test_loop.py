"""The order of hooks, where a training ends, and its evaluations."""

from __future__ import annotations

import math

import pytest
import torch

from danling import Callback
from danling.callback import HOOKS
from danling.errors import ConfigError, DataError, MetricError
from danling.testing import Event, TinyRunner
from tests.support.recorded import BATCHES, by_steps, recorded

# The order


BATCH = [
    *("on_fetch_start", "on_fetch_end", "on_batch_start"),
    *("on_before_step", "on_step", "on_batch_end"),
]
EVALUATION = [
    "on_evaluate_start",
    *["on_evaluate_batch_start", "on_evaluate_batch_end"] * BATCHES,
    "on_evaluate_end",
]


def test_the_hooks_of_a_training_fire_in_the_order_of_the_documentation():
    runner, recording = recorded({"max_epochs": 1, "log_interval": 4})

    runner.train()

    steps = [*BATCH, "on_checkpoint"] * 3 + [*BATCH, "on_log", "on_checkpoint"]
    assert recording.hooks == [
        *("on_setup", "on_train_start", "on_epoch_start", *steps),
        *(*EVALUATION, "on_log", "on_epoch_end", "on_checkpoint", "on_train_end", "on_teardown"),
    ]


def test_an_evaluation_by_steps_is_over_before_the_safe_point_of_its_step():
    runner, recording = recorded({"max_epochs": 1, "evaluate_every": "2 steps"})

    runner.train()

    step = [*BATCH, "on_checkpoint"]
    evaluated = [*BATCH, *EVALUATION, "on_log", "on_checkpoint"]
    at_end = [*step, *EVALUATION, "on_log"]  # at the last step it is that of the epoch, once
    assert recording.hooks[3:-5] == [*step, *evaluated, *step, *at_end]
    assert recording.hooks[-5:] == [
        *("on_epoch_end", "on_checkpoint", "on_log", "on_train_end", "on_teardown")
    ]


def test_hooks_see_counters_of_what_is_completed():
    runner, recording = recorded({"max_epochs": 2})

    runner.train()

    second = recording.events[recording.hooks.index("on_checkpoint", 60) :]
    by_hook = {hook: [e[1:] for e in recording.events if e.hook == hook] for hook in HOOKS}
    assert by_hook["on_epoch_start"] == [(0, 0, 0), (1, 0, 4)]
    assert by_hook["on_batch_start"][:5] == [(0, i, i) for i in range(4)] + [(1, 0, 4)]
    assert by_hook["on_before_step"][:2] == [(0, 0, 0), (0, 1, 1)]
    assert by_hook["on_step"][:5] == [(0, i, i + 1) for i in range(4)] + [(1, 0, 5)]
    assert by_hook["on_batch_end"][:5] == [(0, i + 1, i + 1) for i in range(4)] + [(1, 1, 5)]
    assert by_hook["on_evaluate_start"] == [(0, 4, 4), (1, 4, 8)]
    assert by_hook["on_epoch_end"] == [(1, 0, 4), (2, 0, 8)]
    assert by_hook["on_checkpoint"][3:5] == [(0, 4, 4), (1, 0, 4)]
    assert second[-1] == Event("on_teardown", 2, 0, 8)


@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_hooks_are_counted_and_paired_under_accumulation(accumulation):
    accelerate = {"gradient_accumulation_steps": accumulation}
    runner, recording = recorded({"max_epochs": 2, "accelerate": accelerate}, samples=40)

    runner.train()

    steps = 2 * math.ceil(10 / accumulation)
    assert recording.count("on_batch_start") == recording.count("on_batch_end") == 20
    assert recording.count("on_before_step") == recording.count("on_step") == steps
    assert runner.global_step == steps
    assert recording.count("on_checkpoint") == steps + 2
    assert recording.is_paired


@pytest.mark.parametrize("accumulation", [1, 3, 4])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_steps_cuts_an_epoch_after_the_step(accumulation, limit):
    accelerate = {"gradient_accumulation_steps": accumulation}
    config = {"max_epochs": 9, "max_steps": limit, "accelerate": accelerate}
    runner, recording = recorded(config, samples=40)

    runner.train()

    batches = min(limit * accumulation, 10)
    whole = batches == 10
    assert recording.count("on_step") == runner.global_step == limit
    assert recording.count("on_batch_end") == batches
    assert recording.is_paired
    assert runner.epoch_complete == whole
    assert (runner.epoch, runner.batch_index) == ((1, 0) if whole else (0, batches))
    assert "val" in runner.results[-1]  # at the end, since there was no evaluation before
    assert recording.count("on_checkpoint") == limit + whole


class Stopping(Callback):
    def __init__(self, hook: str, step: int = 2):
        setattr(self, hook, self.stop)
        self.step = step

    def stop(self, runner, *_):
        if runner.global_step >= self.step:
            runner.stop("enough")


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "hook", ["on_batch_start", "on_before_step", "on_step", "on_batch_end", "on_checkpoint"]
)
def test_stop_ends_after_the_step_with_paired_hooks(hook, accumulation):
    accelerate = {"gradient_accumulation_steps": accumulation}
    config = {"max_epochs": 9, "accelerate": accelerate}
    runner, recording = recorded(config, Stopping(hook), samples=40)

    runner.train()

    assert recording.is_paired
    assert runner.global_step == (2 if hook in ("on_step", "on_batch_end", "on_checkpoint") else 3)
    assert runner.batch_index == runner.global_step * accumulation
    assert (runner.stop_reason, runner.status, runner.epoch) == ("enough", "stopped", 0)
    assert not runner.epoch_complete
    assert "val" not in runner.results[-1]


def test_a_stop_in_the_last_batch_leaves_a_whole_evaluated_epoch():
    runner, recording = recorded({"max_epochs": 9}, Stopping("on_step", 4))

    runner.train()

    assert (runner.epoch, runner.epoch_complete) == (1, True)
    assert "val" in runner.results[-1]
    assert recording.is_paired


@pytest.mark.parametrize("hook", ["on_setup", "on_train_start", "on_epoch_start", "on_epoch_end"])
def test_stop_outside_of_the_batches_ends_the_training(hook):
    runner, recording = recorded({"max_epochs": 9}, Stopping(hook, 0))

    runner.train()

    assert recording.is_paired
    assert runner.status == "stopped"
    assert runner.global_step <= BATCHES


@pytest.mark.parametrize("interval", [1, 3])
def test_stop_keeps_the_first_reason(interval):
    runner, _ = recorded({"log_interval": interval})

    with runner:
        assert not runner.should_stop
        runner.stop("first")
        runner.stop("second")
        assert runner.should_stop

    assert runner.stop_reason == "first"


# Limits


def test_training_without_a_limit_is_refused():
    runner, recording = recorded({"max_epochs": None})

    with pytest.raises(ConfigError, match="set max_epochs or max_steps"):
        runner.train()
    with runner, pytest.raises(ConfigError, match="set max_epochs or max_steps"):
        runner.epochs()

    assert recording.hooks == ["on_setup", "on_teardown"]


def test_a_second_train_goes_on_where_the_limits_allow():
    whole, _ = recorded({"max_epochs": 3})
    whole.train()

    runner, recording = recorded({"max_epochs": 1})
    runner.train()
    runner.config.max_epochs = 3
    runner.train()

    assert (runner.epoch, runner.global_step) == (3, 12)
    assert torch.equal(runner.model.weight, whole.model.weight)
    assert runner.results == whole.results
    assert recording.is_paired


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_epochs": None, "max_steps": 4}])
def test_a_second_train_says_that_there_is_nothing_to_do(limit, caplog: pytest.LogCaptureFixture):
    runner, recording = recorded(limit)
    runner.train()
    recording.events.clear()

    runner.train()

    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["nothing to do: epoch 1, global step 4 is the limit of this run"]
    assert recording.hooks == ["on_setup", "on_train_start", "on_train_end", "on_teardown"]
    assert runner.status == "finished"


def test_an_epoch_cut_and_gone_on_with_has_the_result_of_a_whole_one():
    whole, _ = recorded({"max_epochs": 1})
    whole.train()

    runner, recording = recorded({"max_epochs": 1, "max_steps": 3})
    runner.train()
    runner.config.max_steps = None
    runner.train()

    assert [result["epoch"] for result in runner.results] == [0, 1]
    assert runner.results[-1] == whole.results[-1]
    assert torch.equal(runner.model.weight, whole.model.weight)
    assert recording.count("on_epoch_start") == 1


def test_a_limit_of_no_epochs_trains_nothing():
    runner, recording = recorded({"max_epochs": 0})

    runner.train()

    assert recording.hooks == ["on_setup", "on_train_start", "on_train_end", "on_teardown"]
    assert runner.results == []


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": None, "max_steps": 4}])
def test_a_training_without_batches_is_refused(limit):
    runner, _ = recorded({**limit, "dataloader": {"batch_size": 99, "drop_last": True}})

    with pytest.raises(DataError, match="'train' has no batches"):
        runner.train()


# Evaluation within a training


def test_evaluation_by_steps_adds_results_of_its_own():
    runner, _ = recorded({"max_epochs": 2, "evaluate_every": "3 steps"})

    runner.train()

    assert [(r["epoch"], r["global_step"], "val" in r) for r in runner.results] == [
        (0, 3, True),
        (1, 4, False),
        (1, 6, True),
        (2, 8, False),
    ]
    assert [score is None for score in runner.scores] == [False, True, False, True]
    assert runner.evaluations == 2


def test_an_evaluation_at_the_last_step_of_an_epoch_belongs_to_the_epoch():
    runner, _ = recorded({"max_epochs": 2, "evaluate_every": "4 steps"})

    runner.train()

    assert [(r["epoch"], r["global_step"]) for r in runner.results] == [(1, 4), (2, 8)]
    assert all({"train", "val"} <= set(result) for result in runner.results)
    assert None not in runner.scores


@pytest.mark.parametrize(
    ("every", "epochs"), [("2 epochs", [2, 4]), (None, []), ("0.5 run", [2, 5])]
)
def test_evaluation_is_as_often_as_said(every, epochs):
    runner, recording = recorded({"max_epochs": 5, "evaluate_every": every})

    runner.train()

    found = [result["epoch"] for result in runner.results if "val" in result]
    assert recording.count("on_evaluate_start") == len(epochs)
    assert found == epochs


def test_two_splits_evaluated_in_an_epoch_are_in_its_result():
    runner, _ = recorded({"max_epochs": 1})

    with runner:
        for _ in runner.epochs():
            by_steps(runner)
            runner.evaluate("test")
            results = runner.evaluate("val", "test")

    assert set(results) == {"val", "test"}
    assert {"train", "val", "test"} <= set(runner.results[0])


@pytest.mark.parametrize("every", ["1 epoch", "2 steps"])
@pytest.mark.parametrize("monitor", ["val/f1", "vall/loss", "loss"])
def test_a_monitor_that_does_not_exist_is_an_error_with_the_names(monitor, every):
    runner, recording = recorded({"monitor": monitor, "evaluate_every": every})

    with pytest.raises(MetricError, match=monitor) as raised:
        runner.train()

    assert "val/loss" in str(raised.value)
    assert recording.hooks[-1] == "on_teardown"
    assert runner.epoch <= 1


def test_nan_infinite_and_missing_scores_are_never_best(caplog: pytest.LogCaptureFixture):
    scores = [math.nan, 0.5, math.nan, 0.7, None, math.inf]

    class Scripted(TinyRunner):
        def evaluate_step(self, batch):
            score = scores[self.epoch]
            return {"loss": torch.tensor(1.0)} | ({} if score is None else {"score": score})

    runner = Scripted({"max_epochs": 6, "monitor": "val/score", "monitor_mode": "max"})
    runner.train()

    assert runner.best_score == 0.7
    assert runner.best_result == runner.results[3]
    assert runner.scores[4] is None
    assert not runner.is_best
