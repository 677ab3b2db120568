"""Checkpoints of which each process writes its part: what is written, and what faults leave."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import danling as dl
from danling.callbacks import ModelCheckpoint
from danling.checkpoint.reading import read_checkpoint
from danling.checkpoint.sharded.shards import directories
from danling.checkpoint.store import CheckpointStore
from danling.files.failpoints import set_failpoints
from tests.distributed.processes import Ended, leave, results, succeed, together
from tests.distributed.runners import Regression
from tests.distributed.test_sharded import ByAccelerate

pytestmark = pytest.mark.distributed

STEPS = 8


def make(folder: Path, config: dict[str, Any], **options: Any) -> Regression:
    runner = ByAccelerate(
        folder,
        {"max_grad_norm": 0.5, "resume": "auto", **config},
        samples={"train": 32, "val": 8},
        callbacks=[ModelCheckpoint(**{"every": "1 step", **options})],
        default_callbacks=True,
    )
    runner.optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.05)
    return runner


def training(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
    if options.get("asynchronous"):  # a step is taken meanwhile
        set_failpoints("shards.after_directory=sleep:0.1")
    runner = make(folder, config, **options)
    runner.train()
    leave(folder, [runner.results, runner.resume_report])


def trained(folder: Path, size: int = 2, **options: Any) -> Path:
    """Train in several processes; returns the directory of the checkpoints."""
    folder.mkdir(exist_ok=True)
    succeed(size, training, folder, options.pop("config", {}), options, folder=folder)
    return checkpoints(folder)


def checkpoints(folder: Path) -> Path:
    (found,) = folder.glob("experiments/*/checkpoints")
    return found


def named(directory: Path) -> set[str]:
    """The directories of shards to which a name leads."""
    entries = CheckpointStore(directory).candidates()
    return {entry.trailer.shards for entry in entries if entry.trailer.shards}


def assert_tidy(directory: Path) -> None:
    """Nothing is there but what names lead to, and all of that can be read."""
    assert directories(directory) == named(directory) != set()
    assert not [path.name for path in directory.iterdir() if path.name.startswith(".tmp")]
    for entry in CheckpointStore(directory).candidates():
        read_checkpoint(entry.path)


def test_each_process_writes_its_part_and_names_lead_to_it(tmp_path: Path) -> None:
    directory = trained(tmp_path, keep_every="2 steps", keep_last=2)

    names = {path.name for path in directory.glob("*.pth")}
    assert names == {"latest.pth", "previous.pth", "best.pth", "step-6.pth", "epoch-2.pth"} or (
        names == {"latest.pth", "previous.pth", "best.pth", "step-6.pth", "step-8.pth"}
    )
    assert_tidy(directory)
    assert directories(directory)
    for shards in directories(directory):
        files = sorted(path.name for path in (directory / shards).iterdir())
        assert files == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    head = torch.load(directory / "latest.pth", weights_only=True)
    assert head["model"]["0.weight"].is_meta
    assert head["model"]["0.weight"].shape == (8, 4)
    assert set(head["shards"]["files"]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    row = json.loads((directory / "index.json").read_text())["checkpoints"]["latest"]
    assert row["shards"] == head["shards"]["directory"]
    assert row["size"] > sum(size for size, _ in head["shards"]["files"].values())


@pytest.mark.parametrize("by", ["the configuration", "the launcher"])
def test_shards_hold_what_one_file_would(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_shards = trained(tmp_path / "shards")
    if by == "the launcher":  # as --fsdp_state_dict_type does
        monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    config = {"state_dict_type": "full"} if by == "the configuration" else {}
    in_one = trained(tmp_path / "one", config=config)

    assert not directories(in_one)
    for name in ("latest.pth", "previous.pth", "best.pth"):
        found, expected = read_checkpoint(in_shards / name), read_checkpoint(in_one / name)
        for part in ("model", "optimizer"):
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)


def test_shards_that_threads_write_are_of_one_step(tmp_path: Path) -> None:
    """Each process has a thread for it, and trains on: what is written stays that of the step."""
    at_once = trained(tmp_path / "at_once", keep_every="1 step")
    in_threads = trained(tmp_path / "threads", keep_every="1 step", asynchronous=True)

    assert_tidy(in_threads)
    paths = sorted(at_once.glob("*.pth"))
    assert {"latest.pth", "previous.pth", "best.pth"} < {path.name for path in paths}
    for path in paths:
        found, expected = read_checkpoint(in_threads / path.name), read_checkpoint(path)
        assert found["data"]["global_step"] == expected["data"]["global_step"]
        for part in ("model", "optimizer"):
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)


def test_weights_only_are_shards_too_and_a_moved_run_is_read(tmp_path: Path) -> None:
    directory = trained(tmp_path, save_weights_only=True)
    moved = tmp_path / "moved"
    shutil.move(directory, moved)

    best = read_checkpoint(moved / "best.pth")

    assert "optimizer" not in best
    assert best["model"]["0.weight"].shape == (8, 4)
    assert not best["model"]["0.weight"].is_meta
    assert_tidy(moved)


# Kills

KILLS = [
    ("shards.after_write", 1),
    *(
        pytest.param(*kill, marks=pytest.mark.exhaustive)
        for kill in [
            ("shards.after_directory", 0),
            ("shards.after_write", 0),
            ("shards.after_seal", 0),
            ("checkpoint.after_replace", 0),
            ("checkpoint.after_directory_fsync", 0),
            ("shards.before_remove", 0),
        ]
    ),
]


def dying(folder: Path, failpoint: str, rank: int, asynchronous: bool) -> None:
    if int(os.environ["RANK"]) == rank:
        set_failpoints(f"{failpoint}=kill@4")
    make(folder, {}, asynchronous=asynchronous).train()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    directory = trained(folder)
    return [found for found, _ in results(folder, 2)], read_checkpoint(directory / "latest.pth")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("failpoint", "rank"), KILLS)
def test_a_kill_at_any_point_of_a_save_loses_nothing(
    failpoint: str,
    rank: int,
    asynchronous: bool,
    undisturbed: tuple[list[Any], dict[str, Any]],
    tmp_path: Path,
) -> None:
    expected, last = undisturbed
    ended = together(2, dying, tmp_path, failpoint, rank, asynchronous, folder=tmp_path)
    assert ended.codes[rank] == -9, ended.output
    assert 0 not in ended.codes

    directory = trained(tmp_path)

    for found, report in results(tmp_path, 2):
        assert report["exact"], report
        assert 0 < report["global_step"] < STEPS
        assert found in expected
    saved = read_checkpoint(directory / "latest.pth")
    for part in ("model", "optimizer"):
        torch.testing.assert_close(saved[part], last[part], rtol=0, atol=0)
    assert_tidy(directory)


# Errors

Policy = Literal["raise", "warn"]


class Unsavable(dl.Callback):
    """Its state cannot be saved after one step, which only the main process finds out."""

    def __init__(self) -> None:
        self.step = 0

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        self.step = runner.global_step

    def state_dict(self) -> dict[str, Any]:
        return {"of": print} if self.step == 3 else {}


def failing_to_copy(folder: Path) -> None:
    runner = make(folder, {}, asynchronous=True, on_save_error="warn", keep_every="1 step")
    runner.callbacks.append(Unsavable())
    runner.train()


def test_a_save_that_one_process_cannot_copy_is_made_by_none(tmp_path: Path) -> None:
    expected = trained(tmp_path / "undisturbed", keep_every="1 step")

    ended = together(2, failing_to_copy, tmp_path, folder=tmp_path)

    assert "saves failed in this run" in ended.output
    directory = checkpoints(tmp_path)
    names = {path.name for path in directory.glob("step-*.pth")}
    assert names == {path.name for path in expected.glob("step-*.pth")} - {"step-3.pth"}
    for name in names:
        found, wanted = read_checkpoint(directory / name), read_checkpoint(expected / name)
        torch.testing.assert_close(found["model"], wanted["model"], rtol=0, atol=0)


class FullDisk(dl.Callback):
    """A disk that takes no more from one process while some steps are saved."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_step(self, runner: dl.AccelerateRunner) -> None:
        if runner.rank == self.rank and runner.global_step in (4, 6):
            limit = 64 if runner.global_step == 4 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def on_teardown(self, runner: dl.AccelerateRunner) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def filling(folder: Path, rank: int, policy: Policy, asynchronous: bool) -> None:
    runner = make(folder, {"poll_interval": 1}, on_save_error=policy, asynchronous=asynchronous)
    runner.callbacks.append(FullDisk(rank))
    runner.train()


def run_full(folder: Path, rank: int, policy: Policy, asynchronous: bool) -> Ended:
    return together(2, filling, folder, rank, policy, asynchronous, folder=folder, terminates=False)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_full_disk_of_one_process_is_the_same_error_on_all(
    asynchronous: bool, tmp_path: Path
) -> None:
    ended = run_full(tmp_path, 1, "raise", asynchronous)

    assert ended.codes == [1, 1], ended.output
    tracebacks = [
        part for part in ended.output.split("[rank ") if "CheckpointError: [Errno 27]" in part
    ]
    assert [part[0] for part in tracebacks if "Traceback" in part] == ["1", "0"], ended.output
    assert "raised on rank 1" in ended.output
    directory = checkpoints(tmp_path)
    assert read_checkpoint(directory / "latest.pth")["data"]["global_step"] == 3
    assert_tidy(directory)


@pytest.mark.exhaustive
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_of_one_process_may_be_a_warning(asynchronous: bool, tmp_path: Path) -> None:
    ended = run_full(tmp_path, 1, "warn", asynchronous)

    assert ended.codes == [1, 1], ended.output
    assert "saves failed in this run" in ended.output
    directory = checkpoints(tmp_path)
    assert read_checkpoint(directory / "latest.pth")["data"]["global_step"] == STEPS
    assert_tidy(directory)


@pytest.mark.parametrize("damage", ["changed", pytest.param("gone", marks=pytest.mark.exhaustive)])
def test_all_fall_back_to_the_checkpoint_of_which_all_shards_are_whole(
    damage: str, undisturbed: tuple[list[Any], dict[str, Any]], tmp_path: Path
) -> None:
    directory = trained(tmp_path, config={"max_epochs": 1})
    shards = directory / CheckpointStore(directory).candidates()[0].trailer.shards  # type: ignore[operator]
    if damage == "gone":
        shutil.rmtree(shards)
    else:
        with open(shards / "__1_0.distcp", "r+b") as file:
            file.seek(3000)
            file.write(b"\0\1\2")

    trained(tmp_path, config={"resume": str(directory.parent)})

    for found, report in results(tmp_path, 2):
        assert (report["exact"], report["checkpoint"]) == (True, "previous.pth")
        assert found in undisturbed[0]
    assert "latest.pth is damaged: its shard" in (directory.parent / "run.log").read_text()
    assert list(directory.glob("latest.pth.corrupt-1"))
