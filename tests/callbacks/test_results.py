from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from danling.callback import Callback
from danling.callbacks.lambda_callback import LambdaCallback
from danling.callbacks.logging import Logging
from danling.callbacks.model_checkpoint import ModelCheckpoint
from danling.callbacks.results import Results
from danling.callbacks.run_directory import RunDirectory
from danling.callbacks.run_record import RunRecord
from danling.run.metrics_file import read_metrics
from danling.testing import CallbackContract


def read(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_files_have_the_results_of_the_runner(make_runner):
    runner = make_runner([RunDirectory(), Results()])

    runner.train()

    assert read(runner.dir / "results.json") == runner.results
    assert read(runner.dir / "latest.json") == runner.latest_result
    assert read(runner.dir / "best.json") == runner.best_result
    assert [result["epoch"] for result in runner.results] == [1, 2]


def test_metrics_jsonl_has_a_row_per_log(make_runner):
    logged: list[dict[str, float]] = []
    runner = make_runner(
        [
            RunDirectory(),
            Results(),
            LambdaCallback(on_log=lambda _, metrics: logged.append(metrics)),
        ]
    )

    runner.train()

    rows = list(read_metrics(runner.dir / "metrics.jsonl"))
    values = [{tag: value for tag, value in row.items() if "/" in tag} for row in rows]
    assert values == [dict(metrics) for metrics in logged]
    assert [row["global_step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["global_step"] for row in rows if "val/loss" in row] == [6, 12]
    times = [row["time"] for row in rows]
    assert times == sorted(times)


def test_what_json_lacks_is_a_string(make_runner):
    log_nan = LambdaCallback(on_step=lambda runner: runner.log("aux", float("nan")))
    runner = make_runner([RunDirectory(), Results(), log_nan], max_epochs=1)

    runner.train()

    rows = list(read_metrics(runner.dir / "metrics.jsonl"))
    assert math.isnan(rows[0]["train/aux"])
    assert json.loads((runner.dir / "results.json").read_text())[0]["train"]["aux"] == "NaN"


def test_the_files_are_there_after_an_exception(make_runner):
    def fail(runner):
        if runner.global_step == 9:
            raise ValueError("boom")

    runner = make_runner([RunDirectory(), Results(), LambdaCallback(on_step=fail)])
    with pytest.raises(ValueError, match="boom"):
        runner.train()

    assert [result["epoch"] for result in read(runner.dir / "results.json")] == [1]
    steps = [row["global_step"] for row in read_metrics(runner.dir / "metrics.jsonl")]
    assert steps[-1] == 8


def test_an_evaluation_within_an_epoch_is_a_result(make_runner):
    runner = make_runner([RunDirectory(), Results()], max_epochs=1, evaluate_every="2 steps")

    runner.train()

    steps = [result["global_step"] for result in read(runner.dir / "results.json")]
    assert steps[:2] == [2, 4]
    assert read(runner.dir / "results.json") == runner.results


def test_without_a_directory_there_are_no_files(make_runner, tmp_path: Path):
    make_runner([Results()]).train()

    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_after_the_training_changes_no_file(make_runner):
    runner = make_runner([RunDirectory(), Results()])
    runner.train()
    before = {path.name: path.read_bytes() for path in runner.dir.iterdir() if path.is_file()}

    runner.evaluate("val")

    after = {path.name: path.read_bytes() for path in runner.dir.iterdir() if path.is_file()}
    assert after == before


def test_a_second_training_goes_on_with_the_files(make_runner):
    runner = make_runner([RunDirectory(), Results()], max_epochs=1)
    runner.train()
    first = (runner.dir / "metrics.jsonl").read_text()

    runner.config.max_epochs = 2
    runner.train()

    text = (runner.dir / "metrics.jsonl").read_text()
    assert text.startswith(first)
    assert [result["epoch"] for result in read(runner.dir / "results.json")] == [1, 2]


def test_a_full_disk_ends_no_training(make_runner, capfd: pytest.CaptureFixture[str]):
    def replace_by_directories(runner):
        for name in ("results.json", "latest.json", "best.json", "metrics.jsonl"):
            (runner.dir / name).mkdir()  # nothing can be written to these

    runner = make_runner(
        [RunDirectory(), Logging(), Results(), LambdaCallback(on_setup=replace_by_directories)]
    )

    runner.train()

    assert runner.epoch == 2
    assert capfd.readouterr().err.count("writing the results failed") == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_list_does_not_matter(make_runner, order: tuple[int, ...]):
    callbacks: list[Callback] = [
        RunDirectory(),
        Results(),
        LambdaCallback(on_step=lambda runner: runner.log("aux", 1.0)),
    ]

    runner = make_runner([callbacks[i] for i in order], max_epochs=1)
    runner.train()

    assert read(runner.dir / "latest.json")["train"]["aux"] == 1.0
    assert next(read_metrics(runner.dir / "metrics.jsonl"))["train/aux"] == 1.0


def test_the_rows_of_a_checkpoint_are_on_the_disk_before_it(make_runner):
    results = Results()
    counts: list[tuple[int, int]] = []

    def count(runner):
        rows = results.state_dict()["rows"]
        if rows:
            counts.append((rows, len(list(read_metrics(runner.dir / "metrics.jsonl")))))

    make_runner([RunDirectory(), results, LambdaCallback(on_checkpoint=count)]).train()

    assert counts[-1][0] == 8
    assert all(counted == on_disk for counted, on_disk in counts)


def test_the_same_seed_writes_the_same_results(make_runner):
    texts = []
    for _ in range(2):
        runner = make_runner([RunDirectory(), Results()])
        runner.train()
        texts.append((runner.dir / "results.json").read_text())

    assert texts[0] == texts[1]


# A run that goes on


def interrupted(make_runner, **config: Any):
    """A run that failed in step 9; its checkpoint is of step 6."""

    def fail(runner):
        if runner.global_step == 9:
            raise ValueError("boom")

    callbacks = [RunDirectory(), Results(), RunRecord(), ModelCheckpoint()]
    runner = make_runner([*callbacks, LambdaCallback(on_step=fail)], log_interval=1, **config)
    with pytest.raises(ValueError, match="boom"):
        runner.train()
    return runner


def resumed(make_runner, run, **config: Any):
    callbacks = [RunDirectory(), Results(), RunRecord(), ModelCheckpoint()]
    runner = make_runner(callbacks, log_interval=1, resume=str(run.dir), **config)
    runner.train()
    return runner


def values(runner) -> list[dict[str, Any]]:
    rows = read_metrics(runner.dir / "metrics.jsonl")
    return [{tag: value for tag, value in row.items() if tag != "time"} for row in rows]


def test_the_metrics_of_a_resumed_run_are_those_of_one_that_was_not_interrupted(make_runner):
    callbacks = [RunDirectory(), Results(), RunRecord(), ModelCheckpoint()]
    whole = make_runner(callbacks, log_interval=1)
    whole.train()
    run = interrupted(make_runner)

    again = resumed(make_runner, run)

    assert again.dir == run.dir
    assert values(again) == values(whole)
    assert read(again.dir / "results.json") == read(whole.dir / "results.json")
    assert read(again.dir / "best.json") == read(whole.dir / "best.json")


def test_the_rows_after_the_checkpoint_are_set_aside(make_runner):
    run = interrupted(make_runner)

    resumed(make_runner, run)

    abandoned = read_metrics(run.dir / "metadata" / "abandoned.jsonl")
    assert [row["global_step"] for row in abandoned] == [7, 8]


def test_an_evaluation_that_is_done_again_is_logged_once(make_runner):
    """The checkpoint is of the last step of an epoch, before the epoch's evaluation."""

    def fail(runner):
        raise ValueError("boom")

    callbacks = [RunDirectory(), Results(), RunRecord(), ModelCheckpoint(every="1 step")]
    run = make_runner([*callbacks, LambdaCallback(on_epoch_end=fail)], log_interval=1)
    with pytest.raises(ValueError, match="boom"):
        run.train()

    again = resumed(make_runner, run)

    logged = [(row["global_step"], tag) for row in values(again) for tag in row if "/" in tag]
    assert len(logged) == len(set(logged))
    assert (6, "val/loss") in logged


class TestContract(CallbackContract):
    default_callbacks = True

    def make(self):
        return Results()
