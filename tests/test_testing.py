from __future__ import annotations

import gc
import math
import re
from pathlib import Path

import pytest
import torch

from danling.callback import HOOKS, Callback
from danling.errors import CallbackError
from danling.testing import CallbackContract, Event, RecordingCallback, TinyRunner, is_equal


class Counter(Callback):
    """Keeps to the contract."""

    def __init__(self):
        self.steps = 0

    def on_step(self, runner):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Forgetful(Counter):
    def load_state_dict(self, state):
        pass


class Shared(Counter):
    seen: list[int] = []  # noqa: RUF012

    def on_step(self, runner):
        self.seen.append(runner.global_step)

    def state_dict(self):
        return {"seen": list(self.seen)}


class Dividing(Callback):
    def on_epoch_end(self, runner):
        assert runner.latest_result["train"]["loss"] > 0


class Clumsy(Callback):
    def on_teardown(self, runner):
        raise OSError("the file was never opened")


class Drawing(Callback):
    def on_step(self, runner):
        torch.rand(1)


class Shrinking(Callback):
    def on_before_step(self, runner):
        for parameter in runner.model.parameters():
            parameter.grad.mul_(0.5)


class Waiting(Callback):
    def on_batch_end(self, runner, batch, output):
        output["loss"].item()


class Inexact(Callback):
    def __init__(self):
        self.scale = 1.0

    def on_before_step(self, runner):
        self.scale *= 0.9
        for parameter in runner.model.parameters():
            parameter.grad.mul_(self.scale)


class OnlyFirst(Callback):
    def on_before_step(self, runner):
        for parameter in runner.model.parameters() if runner.is_main_process else ():
            parameter.grad.mul_(0.5)


class Alone(Callback):
    def on_epoch_end(self, runner):
        assert not runner.distributed


class Loner(Callback):
    def on_setup(self, runner):
        if runner.distributed:
            raise CallbackError("one process, please")


class Onlooker(Callback):
    only_watches = True

    def on_epoch_end(self, runner):
        runner.stop("seen enough")


class Leaking(Callback):
    def on_setup(self, runner):
        runner.model.register_forward_hook(lambda module, inputs, output: None)


class Collecting(Callback):
    def on_setup(self, runner):
        gc.disable()


class TestCounter(CallbackContract):
    def make(self):
        return Counter()


class TestRecordingCallback(CallbackContract):
    def make(self):
        return RecordingCallback()


def contract_of(kind):
    contract = CallbackContract()
    contract.make = kind
    return contract


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Forgetful, "test_state_round_trips_through_a_checkpoint"),
        (Shared, "test_two_instances_are_independent"),
        (Clumsy, "test_stays_out_of_the_way_of_another_callback_s_error"),
        (Drawing, "test_draws_no_random_numbers"),
        (Shrinking, "test_changes_the_training_only_where_it_says_so"),
        (Waiting, "test_does_not_wait_for_the_device_on_every_step"),
        (Inexact, "test_a_killed_run_goes_on_exactly"),
        (OnlyFirst, "test_works_in_two_processes"),
        (Alone, "test_works_in_two_processes"),
        (Onlooker, "test_changes_the_training_only_where_it_says_so"),
        (Leaking, "test_leaves_nothing_behind"),
        (Collecting, "test_leaves_nothing_behind"),
    ],
)
def test_the_contract_finds_a_callback_that_breaks_it(kind, broken, tmp_path: Path):
    try:
        with pytest.raises(AssertionError):
            getattr(contract_of(kind), broken)(tmp_path)
    finally:
        gc.enable()


def test_one_that_says_it_changes_the_training_must(tmp_path: Path):
    contract = contract_of(Shrinking)
    contract.changes_training = True
    contract.test_changes_the_training_only_where_it_says_so(tmp_path)

    contract.make = Counter
    with pytest.raises(AssertionError):
        contract.test_changes_the_training_only_where_it_says_so(tmp_path)


def test_one_that_needs_one_process_must_say_so_and_refuse_several(tmp_path: Path):
    contract = contract_of(Loner)
    with pytest.raises(AssertionError, match=r"two processes left with \[1, 1\]"):
        contract.test_works_in_two_processes(tmp_path)

    contract.needs_one_process = True
    (tmp_path / "again").mkdir()
    contract.test_works_in_two_processes(tmp_path / "again")


def test_the_cost_of_a_step_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    contract_of(Counter).test_the_cost_of_a_step_is_told(tmp_path)

    assert re.fullmatch(r"counter: -?[\d.]+ us a step on [\d.]+ us\n", capsys.readouterr().out)


def test_the_contract_finds_a_callback_that_counts_on_batches(tmp_path: Path):
    with pytest.raises(KeyError, match="train"):
        contract_of(Dividing).test_works_without_batches(tmp_path)


def test_the_contract_finds_state_that_a_checkpoint_cannot_hold(tmp_path: Path):
    class Opaque(Callback):
        def state_dict(self):
            return {"where": Path("somewhere")}

    with pytest.raises(Exception, match="weights_only"):
        contract_of(Opaque).test_state_round_trips_through_a_checkpoint(tmp_path)


def test_a_contract_without_a_callback_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"make\(\) must return the callback"):
        CallbackContract().make()


def test_a_recording_callback_hears_every_hook_unless_told_otherwise():
    everything, little = RecordingCallback(), RecordingCallback("on_step", name="little")

    TinyRunner({"max_epochs": 1, "log_interval": 1}, callbacks=[everything, little]).train()

    missing = {"on_save", "on_load", "on_exception"}
    assert set(everything.hooks) == {h for h in HOOKS if "predict" not in h} - missing
    assert little.events == [Event("on_step", 0, index, index + 1) for index in range(4)]
    assert little.count("on_step") == 4


def test_pairing_is_checked():
    recording = RecordingCallback("on_epoch_start", "on_batch_start", "on_batch_end")
    runner = TinyRunner({"max_epochs": 1}, callbacks=[recording])
    runner.train()
    assert not recording.is_paired

    recording.events.append(Event("on_epoch_end", 1, 0, 4))
    assert recording.is_paired
    recording.events.append(Event("on_batch_end", 1, 0, 4))
    assert not recording.is_paired


def test_a_hook_that_does_not_exist_cannot_be_recorded():
    with pytest.raises(CallbackError, match="'on_stepp' is not a hook: did you mean 'on_step'"):
        RecordingCallback("on_stepp")


def test_tiny_runners_are_all_alike():
    one = TinyRunner()
    one.train()
    torch.rand(3)
    other = TinyRunner()
    other.train()

    assert torch.equal(one.model.weight, other.model.weight)
    assert one.results == other.results


def test_a_tiny_runner_writes_nothing(tmp_path: Path):
    TinyRunner().train()

    assert list(tmp_path.iterdir()) == []


def test_states_are_compared_by_value():
    state = {"a": [1, math.nan], "b": torch.tensor([1.0, math.nan])}

    assert is_equal(state, {"a": [1, math.nan], "b": torch.tensor([1.0, math.nan])})
    assert not is_equal(state, {"a": [1, math.nan], "b": torch.tensor([1.0, 2.0])})
    assert not is_equal(state, {"a": [1], "b": state["b"]})
    assert not is_equal({"a": 1}, {"b": 1})
    assert not is_equal(torch.zeros(2), [0.0, 0.0])
