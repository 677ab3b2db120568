"""What a checkpoint holds, and that a runner takes all of it or nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from danling.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint, TensorBoard
from danling.checkpoint.reading import read_checkpoint
from danling.errors import CheckpointError, ResumeError
from danling.runner.accelerate import AccelerateRunner
from tests.support.resume_harness import Range, in_process
from tests.support.resume_runs import (
    STEPS,
    Noisy,
    Runner,
    interrupted,
    log,
    make_runner,
    record,
    trained,
    tree,
    weights,
)


def parts_of(first: AccelerateRunner) -> dict[str, Any]:
    """What a new runner of the same model is made of."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    return {
        "model": model,
        "criterion": nn.MSELoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9),
        "datasets": {"train": Noisy(), "val": Noisy(8)},
    }


def test_the_public_keys_are_there_and_load_with_weights_only():
    runner = trained()

    loaded = torch.load(runner.checkpoint_dir / "latest.pth", weights_only=True)

    public = {"format", "model", "optimizer", "scheduler", "scaler", "config", "results"}
    assert set(loaded) == public | {"callbacks", "data", "rng", "run", "stateful"}


def test_the_weights_of_a_run_load_where_danling_is_not_installed():
    path = trained().checkpoint_dir / "best.pth"
    script = """
        import sys
        sys.modules["danling"] = None
        import torch
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
        )
        model.load_state_dict(torch.load(sys.argv[1])["model"])
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=True)


def test_values_that_were_not_logged_yet_survive():
    options: dict[str, Any] = {"log_interval": 5}
    first = interrupted(9, [ModelCheckpoint("1 step")], **options)

    again = trained(resume=str(first.dir), **options)

    whole = trained(**options)
    rows = [(r.dir / "metrics.jsonl").read_text().splitlines() for r in (again, whole)]
    strip = [
        [row.partition('"time"')[0] + row.partition('"time"')[2].partition(",")[2] for row in r]
        for r in rows
    ]
    assert strip[0] == strip[1]


# All or nothing


class Other(nn.Sequential):
    """Another model than that of the checkpoint."""

    def __init__(self, change: str) -> None:
        width = 9 if change == "shape" else 8
        layers: list[nn.Module] = [nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1)]
        if change == "missing":
            layers.append(nn.Linear(1, 1))
        if change == "unexpected":
            layers[0] = nn.Linear(4, width, bias=False)
        super().__init__(*layers)
        if change == "dtype":
            self.double()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters)


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1)


def step_schedule(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": lambda: Other("shape")}, r"0.bias has the shape \(8,\), in the model \(9,\)"),
        ({"model": lambda: Other("missing")}, "missing weight 3.weight"),
        ({"model": lambda: Other("unexpected")}, "unexpected weight 0.bias"),
        ({"model": lambda: Other("dtype")}, "0.weight is torch.float32, in the model"),
        ({"optimizer": adam}, "optimizer was SGD, now it is Adam"),
        ({"optimizer": two_groups}, r"groups of \[4\] parameters, now of \[1, 3\]"),
        ({"scheduler": step_schedule}, "missing scheduler"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(options: dict[str, Any], message: str):
    path = interrupted(9).checkpoint_dir / "latest.pth"
    made: dict[str, Any] = {k: v() if k == "model" else v for k, v in options.items()}
    runner = make_runner(**made)
    runner.prepare()
    before = weights(runner), str(runner.optimization.state_dict())

    with pytest.raises(CheckpointError, match=message):
        runner.load_checkpoint(path)

    assert (weights(runner), str(runner.optimization.state_dict())) == before
    assert runner.global_step == 0
    assert runner.results == []


def test_a_schedule_that_is_gone_is_named():
    path = interrupted(9, scheduler=step_schedule).checkpoint_dir / "latest.pth"

    with pytest.raises(CheckpointError, match="unexpected scheduler"):
        make_runner().load_checkpoint(path)


def test_what_fits_is_taken_when_strict_is_not_set():
    path = interrupted(9).checkpoint_dir / "latest.pth"
    runner = make_runner(model=Other("missing"))

    runner.load_checkpoint(path, strict=False)

    report = runner.resume_report
    assert report is not None
    assert not report["exact"]
    assert "missing weight 3.weight" in report["reasons"]
    assert runner.global_step == STEPS
    assert weights(runner)["0.weight"] == read_checkpoint(path)["model"]["0.weight"].tolist()


def test_a_part_that_was_taken_out_of_a_checkpoint_is_missed(tmp_path: Path):
    content = torch.load(interrupted(9).checkpoint_dir / "latest.pth", weights_only=True)
    del content["rng"]
    torch.save(content, tmp_path / "cut.pth")

    with pytest.raises(CheckpointError, match="is not complete: rng is not in it"):
        make_runner().load_checkpoint(tmp_path / "cut.pth")


def test_a_callback_s_state_that_does_not_load_is_named(caplog: pytest.LogCaptureFixture):
    def refuse(state: dict[str, Any]) -> None:
        raise KeyError("count")

    path = interrupted(9, [EarlyStopping()]).checkpoint_dir / "latest.pth"
    stopping = EarlyStopping()
    stopping.load_state_dict = refuse  # as of a class that has changed since

    with pytest.raises(CheckpointError, match="callback 'early_stopping' does not load"):
        make_runner([stopping]).load_checkpoint(path)

    runner = make_runner([stopping])
    runner.load_checkpoint(path, strict=False)
    assert runner.resume_report is not None
    assert not runner.resume_report["exact"]


def test_weights_alone_are_loaded_on_request_only(caplog: pytest.LogCaptureFixture):
    first = trained([ModelCheckpoint(save_weights_only=True)])
    path = first.checkpoint_dir / "best.pth"
    runner = make_runner()

    with pytest.raises(CheckpointError, match="holds only weights"):
        runner.load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        runner.load_checkpoint(path, strict=False)

    assert weights(runner) == {
        name: value.tolist() for name, value in read_checkpoint(path)["model"].items()
    }
    assert runner.global_step == 0
    assert "only weights were loaded" in caplog.text


@pytest.mark.parametrize(
    "state", [{"when": object()}, {"f": test_a_schedule_that_is_gone_is_named}]
)
def test_a_state_that_cannot_be_saved_is_named_and_the_old_file_stays(state: dict[str, Any]):
    odd = LambdaCallback(name="odd")
    odd.state_dict = lambda: state if runner.epoch == 2 else {}
    runner = make_runner([odd])

    with pytest.raises(CheckpointError, match=r"callbacks\['odd'\]\['"):
        runner.train()

    assert runner.checkpoints.load()[0]["data"]["global_step"] == STEPS


# A new run from a checkpoint


def test_a_fork_has_the_best_score_and_leaves_the_first_run_as_it_is():
    first = interrupted(3 * STEPS + 2, scores=(0.5, 0.1, 0.4), max_epochs=4, resume="auto")
    before = tree(first.dir)

    fork = AccelerateRunner.from_checkpoint(
        first.checkpoint_dir / "latest.pth",
        callbacks=[TensorBoard(), EarlyStopping(patience=9)],
        **parts_of(first),
    )
    assert fork.best_score == pytest.approx(0.1)
    fork.train()

    assert fork.dir != first.dir
    assert fork.epoch == 4
    assert tree(first.dir) == before
    assert fork.resume_report is not None
    assert fork.resume_report["run"] == str(first.uuid)
    assert record(fork)["launches"][0]["start_step"] == 3 * STEPS
    assert record(fork)["launches"][0]["resumed"]["run"] == str(first.uuid)


def test_a_fork_goes_on_in_the_middle_of_an_epoch_as_the_run_itself():
    first = interrupted(9, [ModelCheckpoint("1 step")])

    fork = AccelerateRunner.from_checkpoint(first.checkpoint_dir / "latest.pth", **parts_of(first))
    fork.train()

    whole = trained()
    assert weights(fork) == weights(whole)
    assert fork.results == whole.results


def test_a_checkpoint_can_be_evaluated_without_what_trained_it():
    first = trained()
    parts = parts_of(first)

    runner = AccelerateRunner.from_checkpoint(
        first.checkpoint_dir / "best.pth",
        model=parts["model"],
        criterion=parts["criterion"],
        datasets={"test": Noisy(8)},
        default_callbacks=False,
    )

    assert set(runner.evaluate("test")) == {"loss"}


def test_the_report_is_kept_in_the_record_and_in_later_checkpoints():
    first = interrupted(9)

    again = trained(resume=str(first.dir))

    assert record(again)["launches"][1]["resumed"] == again.resume_report
    assert again.checkpoints.load()[0]["run"]["resume_report"] == again.resume_report
    assert "resumed from" in log(again)


# Where it is saved


ACCUMULATION: dict[str, Any] = {"accelerate": {"gradient_accumulation_steps": 4}}
DUE: dict[str, Any] = {"evaluate_every": "2 steps"}


def saving_in(hook: str, *names: str) -> LambdaCallback:
    """Saves once, in the middle of an epoch, in a hook that is no safe point."""
    asked: list[int] = []

    def save(runner: Any, *_: Any) -> None:
        if runner.epoch == 1 and runner.batch_index in (1, 2) and not asked:
            asked.append(runner.global_step)
            runner.save_checkpoint(*names)

    return LambdaCallback(name="save", **{hook: save})


@pytest.mark.parametrize(
    ("hook", "options", "step"),
    [
        ("on_batch_end", ACCUMULATION, 3),  # two windows are an epoch
        ("on_batch_start", {}, 8),
        ("on_batch_end", {}, 7),  # others have not heard of it yet
        ("on_before_step", {}, 8),
        ("on_step", {}, 8),
        ("on_log", {}, 7),
        ("on_evaluate_start", DUE, 8),
        ("on_evaluate_end", DUE, 8),
    ],
)
def test_a_save_in_the_middle_of_a_step_is_made_at_the_end_of_it(
    hook: str, options: dict[str, Any], step: int
):
    checkpoint = ModelCheckpoint(None, save_top_k=0)
    callbacks = [checkpoint, saving_in(hook, "latest"), failing_in_batch(5)]
    first = make_runner(callbacks, **options)
    with pytest.raises(RuntimeError, match="boom"):
        first.train()

    again = trained([ModelCheckpoint(None)], resume="auto", **options)

    assert again.dir == first.dir
    assert again.resume_report is not None
    assert (again.resume_report["exact"], again.resume_report["global_step"]) == (True, step)
    outcomes = [
        (weights(runner), runner.results, metrics_of(runner))
        for runner in (again, trained([ModelCheckpoint(None)], **options))
    ]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("hook", ["on_log", "on_epoch_end"])
def test_a_save_at_the_end_of_an_epoch_is_made_when_it_has_ended(hook: str):
    def save(runner: Any, *_: Any) -> None:
        if runner.epoch == 1 and runner.batch_index == 0:
            runner.save_checkpoint("epoch-1")

    hooks: dict[str, Any] = {hook: save}
    first = make_runner([LambdaCallback(**hooks)])
    first.metrics = {"range": Range()}  # is logged when the epoch ends
    first.train()

    saved = first.checkpoints.load("epoch-1")[0]
    assert saved["run"]["unsafe"] is None
    assert saved["results"] == first.results[:1]


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_save_between_the_last_batch_and_the_end_of_the_epoch_repeats_nothing(evaluated: bool):
    def train(dies: bool, **config: Any) -> Any:
        runner = make_runner([ModelCheckpoint(None, save_top_k=0)], **config)
        with runner:
            for _ in runner.epochs():
                for batch in runner.batches():
                    runner.step(runner.train_step(batch))
                if evaluated:
                    runner.evaluate("val")
                if dies and runner.epoch == 0:
                    runner.save_checkpoint()
                if dies and (not evaluated or runner.epoch == 1):
                    os._exit(0)
                if not evaluated:
                    runner.evaluate("val")
        return runner

    assert in_process(train, True) == 0

    again, whole = train(False, resume="auto"), train(False)

    assert again.resume_report["exact"]
    assert metrics_of(again) == metrics_of(whole)
    assert (weights(again), again.results) == (weights(whole), whole.results)


def test_an_evaluation_at_the_last_step_of_an_epoch_is_its_own_also_after_a_resume():
    first = make_runner([Exit(STEPS)], evaluate_every="3 steps")

    assert in_process(first.train) == 3

    again, whole = (trained(evaluate_every="3 steps", resume=how) for how in ("auto", False))
    assert again.resume_report is not None
    assert again.resume_report["global_step"] == STEPS
    assert again.results == whole.results


class Exit(ModelCheckpoint):
    """Saves at a step, and dies at once."""

    def __init__(self, step: int) -> None:
        super().__init__(None, save_top_k=0)
        self.step = step

    def on_checkpoint(self, runner: Any) -> None:
        if runner.global_step == self.step:
            runner.save_checkpoint()
            os._exit(3)


def test_what_is_asked_for_in_every_micro_batch_is_saved_once():
    saved: list[int] = []
    hooks: dict[str, Any] = {
        "on_batch_end": lambda runner, *_: runner.save_checkpoint(),
        "on_save": lambda runner, path: saved.append(runner.global_step),
    }

    trained([ModelCheckpoint(None, save_top_k=0), LambdaCallback(**hooks)], **ACCUMULATION)

    assert saved == [1, 2, 3, 4, 4]  # and at the end of the training


def test_what_the_run_did_not_live_to_save_is_told():
    first = interrupted(8, [saving_in("on_before_step")])

    assert "latest was not saved: the run ended before a safe point" in log(first)


def test_a_name_that_is_none_is_refused_where_it_is_asked_for():
    with pytest.raises(CheckpointError, match="is no name of a checkpoint") as caught:
        trained([saving_in("on_step", "mine")])

    assert "in on_step" in str(caught.value.__notes__)


def test_a_save_between_the_steps_of_two_optimizers_is_made_after_both():
    def train(hook: str, **config: Any) -> Any:
        asked: list[int] = []

        def save(runner: Any) -> None:
            if runner.global_step in (3, 4) and not asked and hook:
                asked.append(1)
                runner.save_checkpoint()

        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        runner = AccelerateRunner(
            {"seed": 0, "max_epochs": 1, "dataloader": {"batch_size": 4}} | config,
            model=model,
            optimizer={key: torch.optim.SGD(model[key].parameters(), 0.01) for key in "ab"},
            datasets={"train": Noisy()},
            callbacks=[ModelCheckpoint(None), LambdaCallback(on_step=save)],
        )
        with runner:
            for _ in runner.epochs():
                for inputs, targets in runner.batches():
                    for key in "ab":
                        loss = nn.functional.mse_loss(runner.model[key](inputs), targets)
                        runner.step(loss, key)
                    if hook == "die" and runner.global_step == 6:
                        os._exit(0)
        return runner

    assert in_process(train, "die") == 0
    again = train("", resume="auto")

    assert again.resume_report["global_step"] == 4
    assert weights(again) == weights(train(""))


def failing_in_batch(number: int) -> LambdaCallback:
    def fail(runner: Any, batch: Any) -> None:
        if runner.epoch == 1 and runner.batch_index == number:
            raise RuntimeError("boom")

    return LambdaCallback(name="failing", on_batch_start=fail)


class Breaks(Runner):
    """Fails after the forward of a step, which has drawn."""

    def train_step(self, batch: Any) -> Any:
        output = super().train_step(batch)
        if self.global_step == 8:
            raise RuntimeError("boom")
        return output


@pytest.mark.parametrize("launches", [1, 3])
def test_a_save_while_the_run_fails_leaves_latest_alone(launches: int):
    save = LambdaCallback(name="save", on_exception=lambda runner, error: runner.save_checkpoint())
    for _ in range(launches):
        first = make_runner([ModelCheckpoint("1 step"), save], resume="auto")
        first.__class__ = Breaks
        with pytest.raises(RuntimeError, match="boom"):
            first.train()

    assert "step-8.pth is saved while the run failed" in log(first)
    path = first.checkpoint_dir / "step-8.pth"
    with pytest.raises(ResumeError, match="saved while the run failed"):
        make_runner(resume=str(path)).train()
    again = trained(resume="auto")
    assert again.resume_report is not None
    assert (again.resume_report["exact"], again.resume_report["global_step"]) == (True, 8)
    assert weights(again) == weights(trained())
    loose = trained(resume=str(path), elastic=True)
    assert loose.resume_report is not None
    assert not loose.resume_report["exact"]


def test_a_loop_of_the_user_s_saves_after_a_step_and_goes_on_exactly():
    def train(stop_at: int | None, **config: Any) -> Any:
        runner = make_runner([ModelCheckpoint(None)], **config)
        with runner:
            for _ in runner.epochs():
                for batch in runner.batches():
                    runner.step(runner.train_step(batch))
                    if runner.global_step == stop_at:
                        runner.save_checkpoint()
                        os._exit(0)
                runner.evaluate("val")
        return runner

    assert in_process(train, 8) == 0

    again, whole = train(None, resume="auto"), train(None)

    assert again.resume_report is not None
    assert (again.resume_report["global_step"], again.resume_report["exact"]) == (8, True)
    assert weights(again) == weights(whole)
    assert again.results == whole.results
    assert metrics_of(again) == metrics_of(whole)


def metrics_of(runner: Any) -> list[dict[str, Any]]:
    rows = map(json.loads, (runner.dir / "metrics.jsonl").read_text().splitlines())
    return [{tag: value for tag, value in row.items() if tag != "time"} for row in rows]
