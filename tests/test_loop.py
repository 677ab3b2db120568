"""The order of hooks, and how loops that are left early are closed."""

from __future__ import annotations

import gc
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

from danling import Callback
from danling.callback import HOOKS
from danling.errors import ConfigError, DataError, MetricError, RunError
from danling.testing import Event, RecordingCallback, TinyRunner

BATCHES = 4  # of a TinyRunner's epoch
PAIRS = {
    "on_setup": "on_teardown",
    "on_train_start": "on_train_end",
    "on_epoch_start": "on_epoch_end",
    "on_fetch_start": "on_fetch_end",
    "on_batch_start": "on_batch_end",
    "on_before_step": "on_step",
    "on_evaluate_start": "on_evaluate_end",
    "on_evaluate_batch_start": "on_evaluate_batch_end",
    "on_predict_start": "on_predict_end",
}


def recorded(config=None, *callbacks, hooks=(), samples=16) -> tuple[TinyRunner, RecordingCallback]:
    recording = RecordingCallback(*hooks)
    return TinyRunner(config, samples=samples, callbacks=[recording, *callbacks]), recording


def is_paired(hooks: list[str]) -> bool:
    """Whether every start has its end, and what began last ends first."""
    ends = {end: start for start, end in PAIRS.items()}
    open_hooks = []
    for hook in hooks:
        if hook in PAIRS:
            open_hooks.append(hook)
        elif hook in ends and (not open_hooks or open_hooks.pop() != ends[hook]):
            return False
    return not open_hooks


def by_steps(runner) -> None:
    for batch in runner.batches():
        runner.step(runner.train_step(batch))


# The order


BATCH = "on_fetch_start on_fetch_end on_batch_start on_before_step on_step on_batch_end".split()
EVALUATION = (
    "on_evaluate_start " + "on_evaluate_batch_start on_evaluate_batch_end " * BATCHES
).split() + ["on_evaluate_end"]


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
    assert recording.hooks[3:-5] == [*step, *evaluated, *step, *evaluated]
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
    assert is_paired(recording.hooks)


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
    assert is_paired(recording.hooks)
    assert runner.epoch_complete == whole
    assert (runner.epoch, runner.batch_index) == ((1, 0) if whole else (0, batches))
    assert ("val" in runner.results[-1]) == whole
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

    assert is_paired(recording.hooks)
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
    assert is_paired(recording.hooks)


@pytest.mark.parametrize("hook", ["on_setup", "on_train_start", "on_epoch_start", "on_epoch_end"])
def test_stop_outside_of_the_batches_ends_the_training(hook):
    runner, recording = recorded({"max_epochs": 9}, Stopping(hook, 0))

    runner.train()

    assert is_paired(recording.hooks)
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


# Own loops


def test_an_own_loop_is_the_same_as_train():
    ours, expected = recorded()
    ours.train()

    runner, recording = recorded()
    with runner:
        for epoch in runner.epochs():
            assert epoch == runner.epoch
            for batch in runner.batches("train"):
                runner.step(runner.train_step(batch))
            result = runner.evaluate("val")

    assert recording.events == expected.events
    assert runner.results == ours.results
    assert runner.results[-1]["val"] == result
    assert torch.equal(runner.model.weight, ours.model.weight)


LEAVES = {
    "bare": lambda batches: batches,
    "enumerate": lambda batches: (batch for _, batch in enumerate(batches)),
    "tqdm": lambda batches: tqdm(batches, disable=True),
}


@pytest.mark.parametrize("wrap", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_break_out_of_batches_ends_that_epoch_early(wrap, stored, evaluates):
    runner, recording = recorded({"max_epochs": 3})
    kept: list[Any] = []

    with runner:
        for _ in runner.epochs():
            iterator = wrap(runner.batches())
            if stored:
                kept.append(iterator)
            for batch in iterator:
                runner.step(runner.train_step(batch))
                if runner.batch_index == 1:
                    break
            del iterator
            if evaluates:
                runner.evaluate("val")

    assert is_paired(recording.hooks)
    assert recording.count("on_step") == recording.count("on_batch_end") == 6
    assert recording.count("on_checkpoint") == 6 + 3
    assert [result["epoch"] for result in runner.results] == [1, 2, 3]
    assert [set(result) for result in runner.results] == [
        {"epoch", "global_step", "train"} | ({"val"} if evaluates else set())
    ] * 3
    assert runner.epoch_complete


@pytest.mark.parametrize("wrap", LEAVES.values(), ids=LEAVES)
def test_a_break_out_of_epochs_cuts_the_epoch(wrap):
    runner, recording = recorded({"max_epochs": 3})

    with runner:
        for _ in wrap(runner.epochs()):
            for batch in wrap(runner.batches()):
                runner.step(runner.train_step(batch))
                if runner.global_step == 6:
                    break
            if runner.global_step == 6:
                break

    assert is_paired(recording.hooks)
    assert (runner.epoch, runner.epoch_complete, runner.status) == (1, False, "finished")
    assert recording.events[-2:] == [
        Event("on_train_end", 1, 2, 6),
        Event("on_teardown", 1, 2, 6),
    ]
    assert recording.count("on_epoch_end") == 2
    assert runner.scores[-1] is None


def test_a_break_out_of_epochs_after_all_batches_leaves_the_epoch_whole():
    runner, recording = recorded({"max_epochs": 3})

    with runner:
        for _ in runner.epochs():
            by_steps(runner)
            break

    assert (runner.epoch, runner.epoch_complete) == (1, True)
    assert is_paired(recording.hooks)


def test_batches_asked_for_again_after_a_break_go_on_behind_it():
    runner, recording = recorded({"max_epochs": 1})
    seen = []

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                seen += batch[0].tolist()
                break
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                seen += batch[0].tolist()

    everything = [point.tolist() for point, _ in runner.datasets["train"]]
    assert sorted(seen) == sorted(everything)
    assert recording.count("on_batch_start") == recording.count("on_batch_end") == BATCHES
    assert is_paired(recording.hooks)


def test_a_window_left_by_a_break_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture):
    accelerate = {"gradient_accumulation_steps": 3}
    runner, recording = recorded({"max_epochs": 2, "accelerate": accelerate}, samples=40)

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                if runner.batch_index == 3:
                    break
            assert runner.model.weight.grad is not None
            runner.evaluate("val")

    assert "an accumulation window ended without a step" in caplog.text
    assert runner.model.weight.grad is None
    assert recording.count("on_step") == 2
    assert is_paired(recording.hooks)


def test_a_batch_without_a_step_is_passed_over():
    runner, recording = recorded({"max_epochs": 1})

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                if runner.batch_index % 2:
                    runner.step(runner.train_step(batch))

    assert recording.count("on_batch_end") == BATCHES
    assert recording.count("on_step") == runner.global_step == 2
    assert recording.count("on_checkpoint") == 2 + 1


def test_a_window_whose_last_batch_is_passed_over_leaves_nothing_for_the_next():
    accelerate = {"gradient_accumulation_steps": 2}
    runner, _ = recorded({"max_epochs": 1, "accelerate": accelerate})
    gradients = []

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                if runner.batch_index == 2:
                    gradients.append(runner.model.weight.grad)
                if runner.batch_index != 1:
                    runner.step(runner.train_step(batch))

    assert gradients == [None]


@pytest.mark.parametrize("where", ["batch", "epoch", "run"])
def test_an_exception_in_the_body_fires_no_end_hooks(where):
    runner, recording = recorded()

    def raise_in(place):
        if place == where:
            raise ZeroDivisionError(place)

    with pytest.raises(ZeroDivisionError, match=where), runner:
        raise_in("run")
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                raise_in("batch")
            raise_in("epoch")

    ends = {"on_epoch_end", "on_train_end", "on_evaluate_end"} | (
        {"on_batch_end"} if where == "batch" else set()
    )
    assert not ends & set(recording.hooks)
    assert recording.hooks[-2:] == ["on_exception", "on_teardown"]
    assert runner.status == "failed"


def test_a_run_goes_on_after_an_exception_without_its_leftovers():
    runner, _ = recorded({"max_epochs": 1, "evaluate_every": "2 steps"})
    errors = []
    try:
        with runner:
            for _ in runner.epochs():
                for batch in runner.batches():
                    runner.train_step(batch)["loss"].backward()
                    raise ZeroDivisionError
    except ZeroDivisionError as error:
        errors.append(error)  # its traceback keeps the iterators alive

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                assert runner.model.weight.grad is None
                runner.step(runner.train_step(batch))
                if runner.global_step == 2:
                    errors.clear()
                    gc.collect()
                    runner.evaluate("val")

    assert [set(result) for result in runner.results] == [
        {"epoch", "global_step", "val"},
        {"epoch", "global_step", "train"},
    ]
    assert (runner.global_step, runner.epoch, runner.status) == (4, 1, "finished")


def test_an_error_caught_within_the_run_leaves_it_usable():
    runner, recording = recorded({"max_epochs": 2})

    with runner:
        for _ in runner.epochs():
            try:
                for batch in runner.batches():
                    runner.step(runner.train_step(batch))
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    assert is_paired(recording.hooks)
    assert recording.count("on_step") == 2
    assert runner.status == "finished"


class Failing(Callback):
    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, runner, *_):
        raise ZeroDivisionError("in a callback")


@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end", "on_train_end", "on_teardown"])
@pytest.mark.parametrize("wrap", LEAVES.values(), ids=LEAVES)
def test_an_error_at_the_end_of_a_loop_is_never_swallowed(hook, wrap):
    runner, recording = recorded({"max_epochs": 1}, Failing(hook))
    went_on = False

    with pytest.raises(ZeroDivisionError, match="in a callback"):
        with runner:
            for _ in wrap(runner.epochs()):
                for batch in wrap(runner.batches()):
                    runner.step(runner.train_step(batch))
                    break
                break
        went_on = True

    assert not went_on
    assert recording.hooks[-1] == "on_teardown"
    assert runner.status == "failed"


# Out of order


def test_epochs_without_a_run_say_what_to_write():
    runner, recording = recorded()

    with pytest.raises(RunError, match="write `with runner:` around it"):
        runner.epochs()

    assert recording.hooks == []


def test_batches_without_an_epoch_say_what_to_write():
    runner, _ = recorded()

    with pytest.raises(RunError, match=r"write `for epoch in runner.epochs\(\):` around it"):
        runner.batches()
    with runner, pytest.raises(RunError, match="needs an open epoch"):
        runner.batches()


def test_a_step_without_a_batch_says_where_it_belongs():
    runner, _ = recorded()

    with pytest.raises(RunError, match="needs a batch in hand"):
        runner.step(torch.zeros((), requires_grad=True))


def test_a_run_cannot_be_opened_within_itself():
    runner, _ = recorded()

    with runner, pytest.raises(RunError, match="open already"):
        runner.__enter__()


def test_a_stored_iterator_of_epochs_is_useless_after_its_run():
    runner, recording = recorded()
    with runner:
        begun, unused = runner.epochs(), runner.epochs()
        next(begun)

    for iterator in (begun, unused):
        with pytest.raises(RunError, match="epochs"):
            next(iterator)

    assert is_paired(recording.hooks)
    assert recording.count("on_train_start") == 1


def test_a_stored_iterator_of_batches_is_useless_after_its_epoch():
    runner, recording = recorded()
    with runner:
        for epoch in runner.epochs():
            if epoch == 0:
                begun, unused = runner.batches(), runner.batches()
                runner.step(runner.train_step(next(begun)))
                continue
            with pytest.raises(RunError, match="an epoch that is over"):
                next(begun)
            by_steps(runner)
    with pytest.raises(RunError, match="epoch"):
        next(unused)

    assert is_paired(recording.hooks)
    assert runner.global_step == 1 + BATCHES


def test_a_second_iterator_of_epochs_ends_the_first():
    runner, recording = recorded()
    with runner:
        first = runner.epochs()
        next(first)
        by_steps(runner)
        second = list(runner.epochs())
        with pytest.raises(RunError, match="these epochs are over"):
            next(first)

    assert second == [1]
    assert recording.count("on_train_start") == recording.count("on_train_end") == 2
    assert is_paired(recording.hooks)


def test_leaving_a_run_at_a_stored_iterator_closes_it():
    runner, recording = recorded()
    with runner:
        epochs = runner.epochs()
        next(epochs)
        batches = runner.batches()
        runner.step(runner.train_step(next(batches)))

    assert is_paired(recording.hooks)
    assert recording.hooks[-4:] == ["on_epoch_end", "on_log", "on_train_end", "on_teardown"]
    assert not runner.epoch_complete


def test_contexts_do_not_leak_into_the_body_of_a_loop():
    runner, _ = recorded({"max_epochs": 1, "accelerate": {"mixed_precision": "bf16", "cpu": True}})

    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                assert torch.is_grad_enabled()
                assert not torch.is_autocast_enabled("cpu")
                runner.step(runner.train_step(batch))
                break

    assert torch.is_grad_enabled()


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
    assert is_paired(recording.hooks)


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


# Results and logs


class Logs(Callback):
    def __init__(self):
        self.rows: list[tuple[int, dict[str, float]]] = []

    def on_log(self, runner, metrics):
        self.rows.append((runner.global_step, dict(metrics)))


class Constant(TinyRunner):
    """Its loss is the number of the batch, times a weight."""

    def train_step(self, batch):
        loss = self.model.weight.sum() * 0 + self.batch_index + 4.0 * self.epoch
        self.log("aux", loss * 2)
        self.log({"optim/temperature": 0.5})
        return loss

    def evaluate_step(self, batch):
        self.log("aux", 7)
        return torch.tensor(float(self.epoch))


def test_logged_values_are_means_over_the_window():
    logs = Logs()
    runner = Constant({"log_interval": 3}, callbacks=[logs])

    runner.train()

    rows = [(step, row["train/loss"]) for step, row in logs.rows if "train/loss" in row]
    assert rows == [(3, 1.0), (6, 4.0), (8, 6.5)]
    assert [row["train/aux"] for _, row in logs.rows if "train/aux" in row] == [2.0, 8.0, 13.0]
    assert logs.rows[0][1]["optim/temperature"] == 0.5
    assert logs.rows[0][1]["optim/lr/0"] == 0.1
    assert [row for _, row in logs.rows if "val/loss" in row] == [
        {"val/loss": epoch, "val/aux": 7.0} for epoch in (0.0, 1.0)
    ]


def test_results_of_epochs_are_means_over_the_epoch_whatever_the_log_interval():
    results = []
    for interval in (1, 3, 100):
        runner = Constant({"log_interval": interval}, callbacks=[Logs()])
        runner.train()
        results.append(runner.results)

    assert results[0] == results[1] == results[2]
    assert [result["train"] for result in results[0]] == [
        {"loss": 1.5, "aux": 3.0},
        {"loss": 5.5, "aux": 11.0},
    ]
    assert results[0][1]["val"] == {"loss": 1.0, "aux": 7.0}


def test_a_logged_weight_is_logged_as_it_was():
    logs = Logs()

    class Scaled(TinyRunner):
        def train_step(self, batch):
            self.log("weight", self.model.weight[0, 0])
            return super().train_step(batch)

    class Watching(Callback):
        def __init__(self):
            self.seen = []

        def on_batch_start(self, runner, batch):
            self.seen.append(runner.model.weight[0, 0].item())

    watching = Watching()
    runner = Scaled({"max_epochs": 1, "log_interval": 4}, callbacks=[logs, watching])
    runner.train()

    assert logs.rows[0][1]["train/weight"] == pytest.approx(sum(watching.seen) / 4, rel=1e-7)


def test_logging_what_is_no_number_names_it():
    runner, _ = recorded()

    with pytest.raises(MetricError, match=r"log\('aux'\): the tensor has shape \(2,\)"):
        runner.log("aux", torch.zeros(2))
    with pytest.raises(MetricError, match=r"log\('aux'\): a str is no number"):
        runner.log({"aux": "high"})


class Counting:
    """Counts what moves a tensor to the host."""

    METHODS = ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy")

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[tuple[int, str]] = []
        self.runner: Any = None
        for name in self.METHODS:
            monkeypatch.setattr(Tensor, name, self.wrapped(name, getattr(Tensor, name)))

    def wrapped(self, name, method):
        def call(tensor, *args, **kwargs):
            if self.runner is not None:
                self.calls.append((self.runner.global_step, name))
            return method(tensor, *args, **kwargs)

        return call


def test_no_value_moves_to_the_host_but_when_it_is_logged(monkeypatch: pytest.MonkeyPatch):
    logs = Logs()

    class Auxiliary(TinyRunner):
        def train_step(self, batch):
            output = super().train_step(batch)
            self.log("aux", output["loss"] * 2)
            return output

    class Norm(Callback):
        def on_step(self, runner):
            assert runner.grad_norm.ndim == 0

    config = {
        "max_epochs": 1,
        "log_interval": 10,
        "max_grad_norm": 1.0,
        "evaluate_every": None,
        "accelerate": {"gradient_accumulation_steps": 2},
    }
    runner = Auxiliary(config, samples=200, callbacks=[logs, Norm()])
    counting = Counting(monkeypatch)

    class Only(Callback):  # sampling may look at its indices: the loop is what is counted
        def on_fetch_start(self, runner):
            counting.runner = None

        def on_fetch_end(self, runner, batch):
            counting.runner = runner

    runner.callbacks.append(Only())
    runner.train()

    assert runner.global_step == 25
    assert {step for step, _ in counting.calls} == {10, 20, 25}
    assert [step for step, _ in logs.rows] == [10, 20, 25]


def test_values_that_are_not_finite_are_seen_in_the_log(caplog: pytest.LogCaptureFixture):
    logs = Logs()

    class Broken(TinyRunner):
        def train_step(self, batch):
            output = super().train_step(batch)
            return output["loss"] * (math.nan if self.global_step == 1 else 1.0)

    runner = Broken({"max_epochs": 1, "log_interval": 2}, callbacks=[logs])
    with caplog.at_level(logging.WARNING):
        runner.train()

    assert math.isnan(logs.rows[0][1]["train/loss"])
    assert logs.rows[0][1]["train/nonfinite"] == 1
    assert "not finite by global step 2" in caplog.text
    assert math.isnan(runner.results[0]["train"]["loss"])


def test_the_norm_of_the_gradients_is_that_before_clipping():
    norms, logs = [], Logs()

    class Norm(Callback):
        def on_step(self, runner):
            gradients = [p.grad for p in runner.model.parameters()]
            clipped = nn.utils.get_total_norm(gradients)
            norms.append((float(runner.grad_norm), float(clipped)))

    config = {"max_epochs": 1, "log_interval": 4, "max_grad_norm": 1e-3}
    TinyRunner(config, callbacks=[logs, Norm()]).train()

    assert all(before > 1e-2 and after == pytest.approx(1e-3, rel=1e-3) for before, after in norms)
    assert logs.rows[0][1]["optim/grad_norm"] == pytest.approx(
        sum(before for before, _ in norms) / 4
    )


def test_the_norm_outside_of_a_step_is_an_error():
    runner, _ = recorded()

    with pytest.raises(RunError, match="grad_norm"):
        _ = runner.grad_norm
    runner.train()
    with pytest.raises(RunError, match="grad_norm"):
        _ = runner.grad_norm


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
    ("every", "epochs"), [("2 epochs", [2, 4]), (None, []), ("0.5 run", [0, 5])]
)
def test_evaluation_is_as_often_as_said(every, epochs):
    runner, recording = recorded({"max_epochs": 5, "evaluate_every": every})

    runner.train()

    found = [result["epoch"] for result in runner.results if "val" in result]
    assert recording.count("on_evaluate_start") == len(epochs)
    assert every == "0.5 run" or found == epochs


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
