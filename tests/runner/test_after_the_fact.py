"""What is only seen later: after a resume, after a failure, when something else ran in between."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from danling import Callback, Config
from danling.callbacks import LambdaCallback, ModelCheckpoint
from danling.config.settings import WORKER_KEYS
from danling.testing import TinyRunner
from tests.support.clock import SetClock
from tests.support.resume_runs import interrupted, make_runner, record, trained


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    return SetClock(monkeypatch)


# Time


def test_training_time_goes_on_where_it_was(clock: SetClock):
    interrupted(9, [clock.each_step_takes(10)], resume="auto")  # saved at step 6
    clock.pass_time(1000)  # nothing trained

    again = trained([clock.each_step_takes(10)], resume="auto")

    assert again.clock.seconds == 120


def test_what_is_due_by_time_is_due_when_it_would_have_been(clock: SetClock):
    periods = {"evaluate_every": "25 s"}

    def parts() -> list[Callback]:
        return [clock.each_step_takes(10), ModelCheckpoint("35 s", keep_every=None)]

    whole = trained(parts(), project_root="whole", **periods)
    first = interrupted(9, parts(), resume="auto", **periods)
    saved = first.checkpoint_dir / "latest.pth"
    assert torch.load(saved, weights_only=True)["config"]["global_step"] == 8
    again = trained(parts(), resume="auto", **periods)

    steps = [result["global_step"] for result in again.results]
    assert steps == [result["global_step"] for result in whole.results]
    assert steps == [3, 6, 9, 12]


# Something else in between


class Mean:
    """A metric with a state."""

    def __init__(self) -> None:
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        self.total += float(output.sum())
        self.count += len(output)

    def compute(self) -> float:
        return self.total / max(self.count, 1)

    def reset(self) -> None:
        self.total, self.count = 0.0, 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_evaluation_within_an_epoch_leaves_the_metrics_of_the_epoch_alone(split: str):
    def result(*callbacks: Callback) -> Any:
        runner = TinyRunner({"max_epochs": 1}, callbacks=callbacks)
        runner.metrics = {"mean": Mean()}
        runner.train()
        return runner.results[-1]["train"]

    curious = LambdaCallback(on_step=lambda runner: runner.evaluate(split))

    assert result(curious) == result()


@pytest.mark.parametrize("hook", ["on_batch_start", "on_before_step"])
def test_an_evaluation_in_a_hook_makes_no_step_look_finished(hook: str, tmp_path: Path):
    seen: list[Any] = []

    def evaluate_and_save(runner: Any, *_: Any) -> None:
        if runner.global_step == 1:
            before = runner.unsafe
            runner.evaluate("val")
            path = runner.save_checkpoint("step-777")
            seen.append((before, runner.unsafe, path.exists()))

    hooks: dict[str, Any] = {hook: evaluate_and_save}
    runner = make_runner([LambdaCallback(**hooks)], project_root=str(tmp_path))
    runner.train()

    before, after, was_there = seen[0]
    assert before is not None
    assert after == before
    assert not was_there
    saved = torch.load(runner.checkpoint_dir / "step-777.pth", weights_only=True)
    assert saved["config"]["global_step"] == 2  # the step that was open


def test_a_save_that_a_failure_prevented_is_not_made_by_the_next_training():
    failures = [RuntimeError("boom")]

    def fail(runner: Any) -> None:
        if runner.global_step == 1 and failures:
            runner.save_checkpoint("step-777")
            raise failures.pop()

    runner = make_runner([LambdaCallback(on_before_step=fail)])
    with pytest.raises(RuntimeError, match="boom"):
        runner.train()
    assert (runner.global_step, runner.batch_index) == (1, 1)
    runner.train()

    assert (runner.epoch, runner.global_step) == (2, 12)  # from the second batch on
    assert not (runner.checkpoint_dir / "step-777.pth").exists()


def test_the_error_is_in_the_record_and_not_the_stop_that_was_asked_for():
    def fail(runner: Any) -> None:
        if runner.global_step == 2:
            runner.stop("enough")
            raise RuntimeError("boom")

    runner = make_runner([LambdaCallback(on_step=fail)])
    with pytest.raises(RuntimeError, match="boom"):
        runner.train()

    launch = record(runner)["launches"][-1]
    assert (record(runner)["status"], launch["exit_reason"]) == ("failed", "RuntimeError: boom")


def test_a_best_result_that_is_no_longer_one_goes():
    first = interrupted(9, [ModelCheckpoint("1 step")], scores=(float("nan"),) * 9, resume="auto")
    (first.dir / "best.json").write_text(json.dumps({"val": {"loss": 0.0}}))

    again = trained([ModelCheckpoint("1 step")], scores=(float("nan"),) * 9, resume="auto")

    assert again.dir == first.dir
    assert again.best_result is None
    assert not (again.dir / "best.json").exists()


# Secrets


def test_files_with_the_configuration_are_their_owner_s_alone():
    before = os.umask(0o022)
    try:
        runner = trained([ModelCheckpoint("1 step", save_top_k=2)], token="hunter2")
    finally:
        os.umask(before)

    holding = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in runner.dir.rglob("*")
        if path.is_file() and b"hunter2" in path.read_bytes()
    }
    assert {"runner.yaml", "latest.pth", "previous.pth", "best.pth"} <= holding.keys()
    assert set(holding.values()) == {0o600}


# Identity


@pytest.mark.parametrize("where", ["dataloader", "dataloader.train", "dataloader.val"])
@pytest.mark.parametrize("key", WORKER_KEYS)
def test_how_a_loader_reads_is_no_part_of_the_identity(key: str, where: str):
    def semantic(**more: Any) -> Any:
        config = Config({"dataloader": {"batch_size": 4, "train": {}, "val": {}}})
        for name, value in more.items():
            config[f"{where}.{name}"] = value
        return config.semantic()

    assert semantic(**{key: 3}) == semantic()
    assert semantic(batch_size=5) != semantic()
