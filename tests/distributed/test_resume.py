"""A run of several processes is killed and goes on, with as many processes or with others."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import At, Regression, die, numbers
from tests.support.resume_harness import (
    EPOCHS,
    SAMPLES,
    Kill,
    Runner,
    Setting,
    digest,
    name,
    outcome_of,
)

pytestmark = pytest.mark.distributed

SETTINGS = [
    Setting(),
    Setting(workers=2),
    Setting(accumulation=3, every="2 steps"),
    Setting(evaluate_every="3 steps", every="5 steps"),
    Setting(workers=2, persistent=True, schedule="epoch", asynchronous=True, every="2 steps"),
]


def make(root: Path, setting: Setting, kill: tuple[int, int] | None, elastic: bool) -> Runner:
    """A runner of the harness that is killed on one rank, at one step."""
    step, victim = kill or (None, -1)
    runner = Runner(root, setting, step if int(os.environ["RANK"]) == victim else None)
    runner.config.poll_interval = 2
    runner.config.elastic = elastic
    runner.seen = root / f"seen-{os.environ['WORLD_SIZE']}-{runner.rank}.jsonl"
    assert isinstance(runner.callbacks["kill"], Kill)
    return runner


def train(
    root: Path,
    setting: Setting,
    kill: tuple[int, int] | None = None,
    elastic: bool = False,
    callbacks: Sequence[dl.Callback] = (),
) -> None:
    runner = make(root, setting, kill, elastic)
    for callback in callbacks:
        runner.callbacks.append(callback)
    runner.train()
    outcome = outcome_of(runner) | {"epoch": runner.epoch}
    (root / f"outcome-{runner.rank}.json").write_text(json.dumps(outcome))
    (root / "report.json").write_text(json.dumps(runner.resume_report))


def seen(root: Path, size: int) -> list[Any]:
    """The samples of each rank, epoch and batch, as an uninterrupted training would have them."""
    rows: dict[tuple[int, int, int], Any] = {}
    for rank in range(size):
        for line in (root / f"seen-{size}-{rank}.jsonl").read_text().splitlines():
            epoch, batch, *data = json.loads(line)
            rows[epoch, batch, rank] = data
    return sorted(rows.items())


def outcome(root: Path, size: int) -> dict[str, Any]:
    ranks = [json.loads((root / f"outcome-{rank}.json").read_text()) for rank in range(size)]
    assert ranks == [ranks[0]] * size
    (directory,) = (path.parent for path in (root / "experiments").glob("*/run.json"))
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
    return {**ranks[0], "seen": seen(root, size), "metrics": metrics}


def interrupted(
    root: Path, size: int, setting: Setting, *kills: tuple[int, int], then: Setting | None = None
) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    for kill in kills:
        ended = together(size, train, root, setting, kill, folder=root)
        assert ended.codes[kill[1]] == -signal.SIGKILL, ended.output
        assert 0 not in ended.codes
        setting = then or setting
    succeed(size, train, root, setting, folder=root)
    return outcome(root, size)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """Outcomes of trainings that nobody interrupts, each made when it is first asked for."""
    root = tmp_path_factory.mktemp("references")

    class Made(dict[Any, dict[str, Any]]):
        def __missing__(self, key: tuple[int, Setting]) -> dict[str, Any]:
            size, setting = key
            self[key] = interrupted(root / f"{size}-{name(setting)}", size, setting)
            return self[key]

    return Made()


def steps_of(setting: Setting, size: int) -> int:
    return setting.epochs * -(-(SAMPLES // (4 * size)) // setting.accumulation)


def cases() -> Iterator[Any]:
    for index, setting in enumerate(SETTINGS):
        drawn = random.Random(name(setting))
        steps = range(1, steps_of(setting, 2) + 1)
        chosen = drawn.choice(steps[1:])
        for step in steps:
            for rank in (0, 1):
                thinned = step == chosen and rank == index % 2
                marks: Any = [] if thinned else pytest.mark.exhaustive
                yield pytest.param(
                    setting, step, rank, marks=marks, id=f"{name(setting)}-{step}-{rank}"
                )


@pytest.mark.parametrize(("setting", "step", "rank"), [*cases()])
def test_two_processes_of_which_one_is_killed_go_on_exactly(
    setting: Setting, step: int, rank: int, references: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    result = interrupted(tmp_path, 2, setting, (step, rank))

    assert result == references[2, setting]


@pytest.mark.exhaustive
def test_the_number_of_workers_may_change_on_two_processes(
    references: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    result = interrupted(tmp_path, 2, Setting(), (11, 1), (13, 0), then=Setting(workers=2))

    assert result == references[2, Setting()]


# Every sample once


class Seen(dl.Callback):
    """Writes down the samples of each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_batch_start(self, runner: dl.AccelerateRunner, batch: Any) -> None:
        with (self.folder / f"numbers-{runner.rank}.jsonl").open("a") as file:
            print(json.dumps([runner.epoch, runner.batch_index, numbers(batch)]), file=file)


def seeing(folder: Path, samples: int, workers: int, step: int | None) -> None:
    loader = {"batch_size": 8, "num_workers": workers}
    config = {"max_epochs": 3, "resume": "auto", "dataloader": loader}
    callbacks: list[dl.Callback] = [ModelCheckpoint(every="1 step"), Seen(folder)]
    if step is not None:
        callbacks.append(At("on_step", die, rank=1, step=step))
    sizes = {"train": samples, "val": 8}
    Regression(folder, config, samples=sizes, callbacks=callbacks, default_callbacks=True).train()


def order_of(folder: Path) -> list[dict[tuple[int, int], list[int]]]:
    """The samples of each rank by epoch and batch; a batch that was done again has them again."""
    found: list[dict[tuple[int, int], list[int]]] = [{}, {}]
    for rank, batches in enumerate(found):
        for line in (folder / f"numbers-{rank}.jsonl").read_text().splitlines():
            epoch, batch, samples = json.loads(line)
            assert batches.setdefault((epoch, batch), samples) == samples
    return found


ONCE = {(97, 1, 0)}
CASES = [
    pytest.param(*case, marks=[] if case in ONCE else pytest.mark.exhaustive)
    for case in product([96, 97], [0, 1, 2], [0, 2])
]


@pytest.mark.parametrize(("samples", "epoch", "workers"), CASES)
def test_each_epoch_has_every_sample_once_and_in_the_order_of_an_undisturbed_one(
    samples: int, epoch: int, workers: int, tmp_path: Path
) -> None:
    per_epoch = -(-samples // 16)
    whole = tmp_path / "whole"
    whole.mkdir()
    succeed(2, seeing, whole, samples, 0, None, folder=whole)
    step = epoch * per_epoch + 4  # the fourth batch is lost: it goes on after the third
    ended = together(2, seeing, tmp_path, samples, workers, step, folder=tmp_path)
    assert ended.codes[1] == -signal.SIGKILL

    succeed(2, seeing, tmp_path, samples, workers, None, folder=tmp_path)

    found = order_of(tmp_path)
    assert found == order_of(whole)
    for number in range(3):
        batches = [batch for rank in found for key, batch in rank.items() if key[0] == number]
        counts = Counter(chain(*batches))
        assert sorted(counts) == list(range(samples))
        assert sum(counts.values()) == samples + samples % 2  # at most one pads the last batch


# Another number of processes


def taking(folder: Path, path: Path) -> None:
    runner = make(folder / "other", Setting(), None, True)
    with runner:
        runner.load_checkpoint(path)
    before, after = read_checkpoint(path), runner.state_dict()
    same = ["model", "optimizer", "scheduler", "results"]
    assert {key: digest(after[key]) for key in same} == {key: digest(before[key]) for key in same}
    assert (runner.epoch, runner.global_step) == (before["data"]["epoch"], 6)
    streams = [digest(stream) for stream in [*before["rng"], runner._loaded_rng]]
    leave(folder, [str(runner.best_score), streams])


def test_another_number_of_processes_takes_all_state_and_new_ones_draw_by_the_seed(
    tmp_path: Path,
) -> None:
    together(2, train, tmp_path, Setting(evaluate_every="3 steps"), (7, 0), folder=tmp_path)
    (path,) = tmp_path.glob("experiments/*/checkpoints/latest.pth")
    found = []
    for name_of_launch in ("one", "two"):
        folder = tmp_path / name_of_launch
        folder.mkdir()
        succeed(3, taking, folder, path, folder=folder)
        found.append(results(folder, 3))

    assert found[0] == found[1]
    assert found[0][0][0] == found[0][2][0] != "None"
    (saved_0, saved_1, first), (*_, second), (*_, third) = (streams for _, streams in found[0])
    assert (first, second) == (saved_0, saved_1)
    assert third not in (saved_0, saved_1)


class Index(dl.Callback):
    """Logs the mean number of the samples of each batch."""

    def on_batch_end(self, runner: dl.AccelerateRunner, batch: Any, output: Any) -> None:
        runner.log("index", batch["index"].double().mean())


def train_elastically(root: Path, setting: Setting, kill: tuple[int, int] | None) -> None:
    train(root, setting, kill, elastic=True, callbacks=[Index()])


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 1),
        (2, 3),
        pytest.param((1, 2), marks=pytest.mark.exhaustive),
        pytest.param((3, 2), marks=pytest.mark.exhaustive),
        (2, 1, 2, 3),
    ],
)
def test_another_number_of_processes_covers_the_rest_of_the_epoch_once(
    sizes: tuple[int, ...], tmp_path: Path
) -> None:
    *before, last = sizes
    setting = Setting()
    step = 2
    for size in before:
        ended = together(size, train_elastically, tmp_path, setting, (step, 0), folder=tmp_path)
        assert ended.codes[0] == -signal.SIGKILL, ended.output
        step += 2

    ended = together(last, train_elastically, tmp_path, setting, None, folder=tmp_path)

    assert ended.codes == [0] * last, ended.output
    assert ended.output.count(f"world_size {before[-1]} -> {last}") == 1
    used: Counter[tuple[int, int]] = Counter()
    for path in tmp_path.glob("seen-*.jsonl"):
        for line in path.read_text().splitlines():
            epoch, _, indices, _ = json.loads(line)
            used.update((epoch, index) for index in indices)
    counts = [[used[epoch, index] for index in range(SAMPLES)] for epoch in range(EPOCHS)]
    lost = _redone(before)
    padding = -SAMPLES % (last * 4) % last  # at most world size - 1 samples are seen twice
    assert all(min(epoch) == 1 for epoch in counts)
    assert sum(counts[0]) - SAMPLES <= lost + last - 1
    assert all(sum(epoch) - SAMPLES <= max(padding, last - 1) for epoch in counts[1:])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exact"] is False
    assert f"world_size {before[-1]} -> {last}" in report["reasons"]
    results = json.loads((tmp_path / "outcome-0.json").read_text())["results"]
    assert [result["epoch"] for result in results] == list(range(1, EPOCHS + 1))
    if sizes == (2, 1):  # in which all batches are of one size, and nothing is padded
        assert results[0]["train"]["index"] == pytest.approx((SAMPLES - 1) / 2)


def _redone(sizes: list[int]) -> int:
    """Samples of the steps that were taken, but not saved: the last step before each kill."""
    return sum(size * 4 for size in sizes)


def test_another_number_of_processes_is_refused_unless_asked_for(tmp_path: Path) -> None:
    ended = together(2, train, tmp_path, Setting(), (5, 0), folder=tmp_path)
    assert ended.codes[0] == -signal.SIGKILL

    ended = together(3, train, tmp_path, Setting(), folder=tmp_path)

    assert 0 not in ended.codes
    assert "saved with 2 processes, now 3" in ended.output
    assert "elastic=True" in ended.output
