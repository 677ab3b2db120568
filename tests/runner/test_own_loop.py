"""Loops that users write, and how those that are left early are closed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tqdm import tqdm

from danling import Callback
from danling.errors import RunError
from danling.testing import Event
from tests.support.recorded import BATCHES, by_steps, recorded

# Left early


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

    assert recording.is_paired
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

    assert recording.is_paired
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
    assert recording.is_paired


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
    assert recording.is_paired


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
    assert recording.is_paired


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


def fails(runner):
    batches = runner.batches()
    for batch in batches:
        runner.train_step(batch)["loss"].backward()
        raise ZeroDivisionError


def test_a_run_goes_on_after_an_exception_without_its_leftovers():
    runner, _ = recorded({"max_epochs": 1, "evaluate_every": "2 steps"})
    errors = []
    try:
        with runner:
            for _ in runner.epochs():
                fails(runner)
    except ZeroDivisionError as error:
        errors.append(error)  # its traceback keeps the iterator alive

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

    assert recording.is_paired
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

    assert recording.is_paired
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

    assert recording.is_paired
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
    assert recording.is_paired


def test_leaving_a_run_at_a_stored_iterator_closes_it():
    runner, recording = recorded()
    with runner:
        epochs = runner.epochs()
        next(epochs)
        batches = runner.batches()
        runner.step(runner.train_step(next(batches)))

    assert recording.is_paired
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

    assert runner.global_step == 1
    assert torch.is_grad_enabled()
