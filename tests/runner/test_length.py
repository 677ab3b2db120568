"""How long a training is, how much it reads, and what it keeps: limits, minima and trial runs."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danling as dl
from danling.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint, TensorBoard
from danling.errors import ConfigError, DataError
from danling.testing import RecordingCallback, TinyRunner, in_child
from tests.support.resume_harness import Kill, digest

BATCHES = 4  # of an epoch of a TinyRunner


class Seen(dl.Callback):
    """The batches of each split, by what is in them."""

    def __init__(self) -> None:
        self.epochs: list[list[str]] = []
        self.evaluated: list[str] = []

    def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
        self.epochs.append([])

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.epochs[-1].append(digest(batch))

    def on_evaluate_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.evaluated.append(digest(batch))


Make = Callable[[dict[str, Any], list[dl.Callback]], dl.AccelerateRunner]


def ends_alike(tmp_path: Path, make: Make, *steps: int) -> dict[str, Any]:
    """Train undisturbed, and killed at steps and resumed: both must end the same."""

    def train(folder: Path, step: int | None = None) -> None:
        config = {"project_root": str(folder / "runs"), "resume": "auto", "log_interval": 1}
        runner = make(config, [ModelCheckpoint(every="1 step"), Kill(step)])
        runner.train()
        model = runner.unwrapped_model
        outcome = {
            "parts": digest([model.state_dict(), runner.optimizer.state_dict()]),
            "results": runner.results,
            "steps": [runner.global_step, runner.epoch, runner.total_steps, runner.progress],
            "stop": runner.stop_reason,
            "exact": runner.resume_report is None or runner.resume_report["exact"],
        }
        (folder / "outcome.json").write_text(json.dumps(outcome))

    outcomes = []
    for name, kills in (("whole", ()), ("cut", steps)):
        folder = tmp_path / name
        folder.mkdir()
        for step in kills:
            assert in_child(partial(train, folder, step)) == -signal.SIGKILL
        assert in_child(partial(train, folder)) == 0
        outcomes.append(json.loads((folder / "outcome.json").read_text()))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["exact"]
    return outcomes[0]


# Limits of batches


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (0.5, 2), (100, 4), (1.0, 4), (1, 1)])
def test_a_split_is_read_up_to_its_limit(limit, expected):
    seen = Seen()
    config = {"limit_batches": {"train": limit, "val": limit}, "max_epochs": 2}
    runner = TinyRunner(config, callbacks=[seen])
    runner.train()
    whole = Seen()
    TinyRunner({"max_epochs": 2}, callbacks=[whole]).train()

    assert seen.epochs == [epoch[:expected] for epoch in whole.epochs]
    assert seen.evaluated == 2 * whole.evaluated[:expected]
    assert runner.global_step == runner.total_steps == 2 * expected
    assert runner.steps_per_epoch == expected
    assert runner.progress == 1.0


def test_a_limit_is_of_whole_windows_and_a_partial_last_one():
    accelerate = {"gradient_accumulation_steps": 2, "cpu": True}
    runner = TinyRunner({"limit_batches": {"train": 3}, "accelerate": accelerate})
    runner.train()

    assert runner.global_step == runner.total_steps == 4


def test_a_limit_holds_for_what_is_asked_for_by_name():
    seen = Seen()
    runner = TinyRunner({"limit_batches": {"test": 2}}, callbacks=[seen])

    runner.evaluate("test")
    assert len(seen.evaluated) == 2
    assert len(runner.predict("test")) == 8


def test_a_split_without_batches_is_not_evaluated():
    seen = Seen()
    runner = TinyRunner({"limit_batches": {"val": 0}, "monitor": "train/loss"}, callbacks=[seen])
    runner.train()

    assert seen.evaluated == []
    assert [list(result) for result in runner.results] == [["epoch", "global_step", "train"]] * 2
    with pytest.raises(DataError, match=r"limit_batches.val is 0"):
        runner.evaluate("val")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"vla": 1}, r"limit_batches.vla is of no split: did you mean 'val'"),
        ({"train": 0.1}, r"0.1 of the 4 batches of 'train' is less than one"),
        ({"train": 0}, r"limit_batches.train is 0"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(limits, message):
    with pytest.raises(DataError, match=message):
        TinyRunner({"limit_batches": limits}).train()


def test_a_limited_training_goes_on_after_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        config |= {"limit_batches": {"train": 3, "val": 0.5}, "max_epochs": 3}
        return TinyRunner(config, callbacks=callbacks, default_callbacks=True)

    assert ends_alike(tmp_path, make, 2, 5, 7)["steps"] == [9, 3, 9, 1.0]


# The same batches again and again


@pytest.mark.parametrize("amount", [2, 0.5])
def test_every_epoch_overfits_the_same_batches(amount):
    seen = Seen()
    runner = TinyRunner({"overfit_batches": amount, "max_epochs": 3}, callbacks=[seen])
    runner.train()
    seen.evaluated.clear()
    runner.evaluate("train")

    assert len(seen.epochs[0]) == 2
    assert seen.epochs == 3 * seen.epochs[:1]
    assert seen.evaluated == seen.epochs[0]
    assert runner.total_steps == runner.global_step == 6


def test_nothing_is_overfitted_with_an_amount_of_nothing():
    runner = TinyRunner({"overfit_batches": 0})
    runner.train()

    assert runner.global_step == 2 * BATCHES


def test_overfitting_goes_on_after_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        config |= {"overfit_batches": 3, "max_epochs": 3}
        return TinyRunner(config, callbacks=callbacks, default_callbacks=True)

    ends_alike(tmp_path, make, 4, 8)


# Streams


class Counting:
    """A stream that never ends, of numbers; it can be told where to go on."""

    def __init__(self, end: int | None = None) -> None:
        self.position, self.end = 0, end

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.position != self.end:
            self.position += 1
            yield torch.full((2, 4), self.position / 10), torch.tensor([0, 1])
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Numbers(dl.Callback):
    """The numbers that were read, by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_epoch_start(self, runner: dl.AccelerateRunner) -> None:
        self.epochs.append([])

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        self.epochs[-1].append(round(float(batch[0][0, 0]) * 10))


def streaming(
    config: dict[str, Any], callbacks: list[dl.Callback], source: Any, **more: Any
) -> TinyRunner:
    config = {"limit_batches": {"train": 3}, "max_epochs": 4, **config, **more}
    runner = TinyRunner(config, callbacks=callbacks, default_callbacks="project_root" in config)
    del runner.datasets["train"]
    runner.dataloaders["train"] = source
    return runner


def generated() -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(1, 6):
        yield torch.full((2, 4), number / 10), torch.tensor([0, 1])


def test_an_endless_stream_has_epochs_of_the_length_of_its_limit():
    numbers = Numbers()
    runner = streaming({}, [numbers], Counting())
    runner.train()

    assert numbers.epochs == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert runner.steps_per_epoch == 3
    assert runner.total_steps == runner.global_step == 12
    assert [result["epoch"] for result in runner.results] == [1, 2, 3, 4]


@pytest.mark.parametrize("source", [lambda: generated(), Counting(5)], ids=["plain", "stateful"])
def test_a_stream_that_ends_begins_anew_within_an_epoch(source):
    numbers = Numbers()
    streaming({}, [numbers], source).train()

    assert numbers.epochs == [[1, 2, 3], [4, 5, 1], [2, 3, 4], [5, 1, 2]]


def test_an_epoch_that_is_left_early_leaves_the_others_where_they_are():
    numbers = Numbers()
    runner = streaming({}, [numbers], lambda: generated())
    with runner:
        for epoch in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                if epoch == 1:
                    break

    assert numbers.epochs == [[1, 2, 3], [4], [2, 3, 4], [5, 1, 2]]


def test_a_stream_without_batches_is_no_endless_loop():
    with pytest.raises(DataError, match="has no batches"):
        streaming({}, [], lambda: iter(())).train()


def test_a_share_of_a_stream_of_unknown_length_is_refused():
    with pytest.raises(DataError, match="nobody knows how many there"):
        streaming({}, [], lambda: generated(), limit_batches={"train": 0.5}).train()


@pytest.mark.parametrize("kind", ["endless", "wrapping", "replayed"])
def test_a_stream_goes_on_after_a_kill_at_the_batch_where_it_was(kind, tmp_path: Path):
    sources = {"endless": Counting, "wrapping": lambda: Counting(5), "replayed": lambda: generated}

    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        if kind == "replayed":
            config["dataloader"] = {"batch_size": 4, "resume": "replay"}
        return streaming(config, callbacks, sources[kind]())

    assert ends_alike(tmp_path, make, 4, 6, 8)["steps"] == [12, 4, 12, 1.0]


# Without data


class Dreaming(dl.AccelerateRunner):
    """Trains on what it makes up by itself."""

    def __init__(self, config: dict[str, Any], **parts: Any) -> None:
        super().__init__({"seed": 0, "accelerate": {"cpu": True}} | config, **parts)
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def train_step(self, batch: None) -> Tensor:
        assert batch is None
        return self.model(torch.randn(5, 3)).pow(2).mean()


def test_a_training_needs_no_data_but_steps():
    runner = Dreaming({"max_steps": 7}, default_callbacks=False)
    runner.train()

    dl.seed_everything(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(7):
        model(torch.randn(5, 3)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert digest(runner.model.state_dict()) == digest(model.state_dict())
    assert (runner.global_step, runner.total_steps, runner.progress) == (7, 7, 1.0)
    assert (runner.epoch, runner.epoch_complete, runner.steps_per_epoch) == (0, False, None)


def test_a_training_without_data_has_epochs_of_the_length_of_its_limit():
    accelerate = {"gradient_accumulation_steps": 2, "cpu": True}
    config = {"limit_batches": {"train": 5}, "max_epochs": 2, "accelerate": accelerate}
    runner = Dreaming(config, default_callbacks=False)
    runner.train()

    assert (runner.global_step, runner.total_steps, runner.epoch) == (6, 6, 2)


def test_a_training_without_data_goes_on_after_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        return Dreaming(config | {"max_steps": 9}, callbacks=callbacks)

    ends_alike(tmp_path, make, 3, 5)


@pytest.mark.parametrize("config", [{"max_steps": 3}, {"max_epochs": 1}])
def test_data_that_was_forgotten_is_missed(config):
    runner = TinyRunner({"max_epochs": None, **config})
    del runner.datasets["train"]
    with pytest.raises(DataError, match=r"no data for the split 'train'.* gets None as its batch"):
        runner.train()


# Within an epoch, and before the first one


def test_a_share_of_an_epoch_is_a_period_of_evaluation():
    runner = TinyRunner({"evaluate_every": "0.5 epoch"})
    runner.train()

    steps = [result["global_step"] for result in runner.results if "val" in result]
    assert steps == [2, 4, 6, 8]
    assert [result["epoch"] for result in runner.results] == [0, 1, 1, 2]


def test_a_share_of_an_epoch_is_counted_in_batches_and_comes_after_a_step():
    accelerate = {"gradient_accumulation_steps": 3, "cpu": True}
    config = {"evaluate_every": "0.25 epoch", "accelerate": accelerate, "max_epochs": 1}
    runner = TinyRunner(config, samples=40)
    runner.train()

    # 10 batches: steps after 3, 6, 9 and 10 of them; quarters end at 2.5, 5 and 7.5
    assert [result["global_step"] for result in runner.results] == [1, 2, 3, 4]


def test_a_share_of_an_epoch_goes_on_after_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        config["evaluate_every"] = "0.75 epoch"
        return TinyRunner(config, callbacks=callbacks, default_callbacks=True)

    found = ends_alike(tmp_path, make, 2, 6)
    assert [r["global_step"] for r in found["results"] if "val" in r] == [3, 6]


def test_a_share_of_an_epoch_of_unknown_length_is_told_of(caplog: pytest.LogCaptureFixture):
    runner = streaming(
        {}, [], lambda: generated(), limit_batches={}, evaluate_every="0.5 epoch", max_epochs=1
    )
    with caplog.at_level(logging.WARNING):
        runner.train()

    assert "nobody knows how long an epoch is" in caplog.text
    assert [result["global_step"] for result in runner.results] == [5]


def test_an_evaluation_at_the_start_is_a_result_and_can_be_the_best(tmp_path: Path):
    recording = RecordingCallback()
    config = {"evaluate_at_start": True, "project_root": str(tmp_path), "max_epochs": 1}
    runner = TinyRunner(config, callbacks=[recording], default_callbacks=True)
    before = TinyRunner().evaluate("val")
    runner.optimizer.param_groups[0]["lr"] = 1e4  # it gets worse
    runner.train()

    assert runner.results[0] == {"epoch": 0, "global_step": 0, "val": before}
    assert [result["global_step"] for result in runner.results] == [0, BATCHES]
    assert runner.best_result == runner.results[0]
    assert recording.hooks.index("on_evaluate_start") < recording.hooks.index("on_epoch_start")
    best = TinyRunner.from_checkpoint(runner.checkpoint_dir / "best.pth")
    assert best.evaluate("val") == before


def test_an_evaluation_at_the_start_changes_nothing_of_the_training():
    plain, evaluated = TinyRunner(), TinyRunner({"evaluate_at_start": True})
    plain.train()
    evaluated.train()

    assert digest(plain.model.state_dict()) == digest(evaluated.model.state_dict())
    assert evaluated.results[1:] == plain.results


def test_an_evaluation_at_the_start_is_not_repeated_after_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        config["evaluate_at_start"] = True
        return TinyRunner(config, callbacks=callbacks, default_callbacks=True)

    found = ends_alike(tmp_path, make, 1, 3)
    assert [result["global_step"] for result in found["results"]] == [0, BATCHES, 2 * BATCHES]


def test_a_training_that_max_steps_ends_is_evaluated_though_it_was_at_the_start():
    runner = TinyRunner({"evaluate_at_start": True, "max_steps": 3})
    runner.train()

    assert [r["global_step"] for r in runner.results if "val" in r] == [0, 3]


# Minima


class StopAt(dl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        if runner.global_step == self.step:
            runner.stop("enough")


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 2),
        ({"min_steps": 7}, 7),
        ({"min_steps": 1}, 2),
        ({"min_epochs": 1}, 4),
        ({"min_epochs": 2, "min_steps": 3}, 8),
        ({"min_epochs": 1, "min_steps": 6}, 6),
        ({"min_steps": 100}, 12),
        ({"min_steps": 9, "max_steps": 5}, 5),
    ],
)
def test_a_stop_waits_for_the_minima_and_no_limit_does(config, steps):
    runner = TinyRunner({"max_epochs": 3, **config}, callbacks=[StopAt(2)])
    runner.train()

    assert runner.global_step == steps
    assert runner.stop_reason == (None if steps in (5, 12) else "enough")
    assert runner.total_steps == config.get("max_steps", 12)


def test_early_stopping_waits_for_the_minimum():
    stopping = EarlyStopping(patience=1)
    runner = TinyRunner({"max_epochs": 9, "min_epochs": 5}, callbacks=[stopping])
    runner.optimizer.param_groups[0]["lr"] = 1e3  # it does not improve
    runner.train()

    assert runner.epoch == 5
    assert runner.stop_reason is not None
    assert runner.stop_reason.startswith("early_stopping: ")


def test_a_signal_waits_for_nothing():
    class Interrupt(dl.Callback):
        def on_step(self, runner: dl.AccelerateRunner) -> None:
            if runner.global_step == 3:
                runner.interrupt(signal.SIGTERM)

    runner = TinyRunner({"min_epochs": 2}, callbacks=[StopAt(2), Interrupt()])
    with pytest.raises(SystemExit) as left:
        runner.train()

    assert left.value.code == 128 + signal.SIGTERM
    assert runner.global_step == 3
    assert runner.stop_reason == "signal SIGTERM"


def test_a_stop_that_waits_is_kept_over_a_kill(tmp_path: Path):
    def make(config: dict[str, Any], callbacks: list[dl.Callback]) -> dl.AccelerateRunner:
        config |= {"max_epochs": 9, "min_steps": 7}
        return TinyRunner(config, callbacks=[StopAt(2), *callbacks], default_callbacks=True)

    found = ends_alike(tmp_path, make, 4, 6)
    assert (found["steps"][0], found["stop"]) == (7, "enough")


# A run to see whether a script works


@pytest.mark.parametrize(("amount", "steps"), [(True, 1), (3, 3), (100, BATCHES)])
def test_a_trial_run_reads_few_batches_and_keeps_nothing(amount, steps, tmp_path: Path):
    root = tmp_path / "experiments"
    recording, seen = RecordingCallback(), Seen()
    config = {
        "project_root": str(root),
        "fast_dev_run": amount,
        "max_epochs": 50,
        "evaluate_every": "10 epochs",
        "min_steps": 99,
        "resume": "auto",
    }
    callbacks = [recording, seen, TensorBoard(), EarlyStopping(), CSVLogger()]
    runner = TinyRunner(config, callbacks=callbacks, default_callbacks=True)
    runner.train()

    assert runner.global_step == runner.total_steps == steps
    assert len(seen.evaluated) == steps
    assert set(recording.hooks) >= {
        *("on_setup", "on_train_start", "on_epoch_start", "on_fetch_start", "on_batch_start"),
        *("on_before_step", "on_step", "on_batch_end", "on_log", "on_evaluate_start"),
        *("on_evaluate_batch_end", "on_evaluate_end", "on_epoch_end", "on_checkpoint", "on_save"),
        *("on_train_end", "on_teardown"),
    }
    assert not root.exists()
    assert not runner.dir.exists()
    assert not runner.dir.parent.exists()
    assert (runner.config.project_root, runner.config.resume) == (str(root), "auto")
    assert os.listdir(tmp_path) == []


def test_a_trial_run_that_fails_keeps_nothing_either(tmp_path: Path):
    class Failing(dl.Callback):
        def on_batch_end(self, runner: dl.AccelerateRunner, batch: Any, output: Any) -> None:
            raise ZeroDivisionError

    config = {"project_root": str(tmp_path / "runs"), "fast_dev_run": True}
    runner = TinyRunner(config, callbacks=[Failing()], default_callbacks=True)
    with pytest.raises(ZeroDivisionError):
        runner.train()

    assert not runner.dir.parent.exists()
    assert os.listdir(tmp_path) == []


def test_a_trial_run_touches_no_run_that_is_to_be_resumed(tmp_path: Path):
    config = {"project_root": str(tmp_path), "max_epochs": 1}
    first = TinyRunner(config, default_callbacks=True)
    first.train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    trial = TinyRunner({**config, "fast_dev_run": True, "resume": str(first.dir)})
    trial.train()

    assert trial.global_step == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_trial_run_needs_no_limit_of_its_own():
    runner = TinyRunner({"fast_dev_run": True, "max_epochs": None})
    runner.train()

    assert runner.global_step == 1


def test_a_training_without_any_limit_is_refused():
    with pytest.raises(ConfigError, match="nothing says when training ends"):
        TinyRunner({"max_epochs": None, "min_epochs": 2}).train()
