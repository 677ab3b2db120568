"""What one process decides becomes what all do; and what only one does is an error, no hang."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from danling.callbacks import ModelCheckpoint
from tests.distributed.processes import leave, results, succeed, together
from tests.distributed.runners import At, Regression

pytestmark = pytest.mark.distributed


def stopping(folder: Path, rank: int) -> None:
    stop = At("on_step", lambda runner: runner.stop("enough"), rank=rank, step=5)
    config = {"max_epochs": 9, "poll_interval": 3}
    runner = Regression(folder, config, callbacks=[stop])
    assert runner.world_size == 2
    runner.train()
    leave(folder, [runner.global_step, runner.stop_reason, runner.epoch_complete, runner.status])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_on_one_rank_ends_all_after_the_same_step(rank: int, tmp_path: Path) -> None:
    succeed(2, stopping, tmp_path, rank, folder=tmp_path)

    expected = [6, f"enough (rank {rank})", False, "stopped"]
    assert results(tmp_path, 2) == [expected, expected]


def reading_alone(folder: Path) -> None:
    runner = Regression(folder, default_callbacks=True)
    if runner.is_main_process:
        facts = [runner.uuid.hex, runner.should_stop, runner.results, runner.monitor]
        assert facts[1:] == [False, [], "val/loss"]
    with runner:
        if runner.is_main_process:
            runner.log("alone", 1.0)
            assert runner.dir.is_dir()
            _ = runner.id, runner.log_path, runner.best_score, runner.progress
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                if runner.is_main_process:
                    runner.stop("the main process has seen enough")
    leave(folder, [runner.global_step, runner.uuid.hex])


def test_what_is_read_or_asked_for_on_one_rank_alone_works(tmp_path: Path) -> None:
    succeed(2, reading_alone, tmp_path, folder=tmp_path)

    first, second = results(tmp_path, 2)
    assert first == second
    assert first[0] == 4  # the first agreement after it is that of the epoch's end


CALLS: dict[str, Callable[..., Any]] = {
    "save_checkpoint()": lambda runner: runner.save_checkpoint(),
    "load_checkpoint()": lambda runner: runner.load_checkpoint("anything.pth"),
    "evaluate()": lambda runner: runner.evaluate("val"),
    "predict()": lambda runner: runner.predict("val"),
    "state_dict()": lambda runner: runner.state_dict(),
}


def calling_in_a_step(folder: Path, call: str, rank: int) -> None:
    trap = At("on_step", CALLS[call], rank=rank, step=3)
    Regression(folder, callbacks=[trap], default_callbacks=True).train()


def calling_at_the_end_of_an_epoch(folder: Path, call: str, rank: int) -> None:
    trap = At("on_epoch_end", CALLS[call], rank=rank, step=3)
    Regression(folder, callbacks=[trap], default_callbacks=True).train()


def calling_after_the_training(folder: Path, call: str, rank: int) -> None:
    runner = Regression(folder, default_callbacks=True)
    runner.train()
    if runner.rank == rank:
        CALLS[call](runner)


PLACES = [calling_in_a_step, calling_at_the_end_of_an_epoch, calling_after_the_training]
THINNED = {*zip(CALLS, [*PLACES, *PLACES], [0, 1, 0, 1, 0], strict=False)}
CASES: list[Any] = [
    pytest.param(*case, marks=[] if case in THINNED else pytest.mark.exhaustive)
    for case in product(CALLS, PLACES, [0, 1])
]


@pytest.mark.parametrize(("call", "where", "rank"), CASES)
def test_a_call_that_only_one_rank_makes_is_an_error_that_names_it(
    call: str, where: Callable[..., None], rank: int, tmp_path: Path
) -> None:
    ended = together(2, where, tmp_path, call, rank, folder=tmp_path)

    assert f"rank {rank} is in {call} while" in ended.output or (
        "another process has gone" in ended.output and call in ended.output
    )
    assert all(code in (0, 1, -15) for code in ended.codes), ended
    assert 1 in ended.codes


def leaving_an_epoch_alone(folder: Path) -> None:
    runner = Regression(folder)
    with runner:
        for _ in runner.epochs():
            for batch in runner.batches():
                runner.step(runner.train_step(batch))
                if runner.is_main_process and runner.global_step == 2:
                    break


def test_a_break_on_one_rank_is_an_error(tmp_path: Path) -> None:
    ended = together(2, leaving_an_epoch_alone, tmp_path, folder=tmp_path)

    assert "every process must make this call" in ended.output
    assert 0 not in ended.codes


def differing_directories(folder: Path) -> None:
    own = folder / f"rank-{os.environ['RANK']}"
    own.mkdir()
    os.chdir(own)
    os.environ["TZ"] = f"UTC+{os.environ['RANK']}"
    time.tzset()
    time.sleep(0.5 * int(os.environ["RANK"]))
    runner = Regression(folder, default_callbacks=True)
    runner.train()
    leave(folder, [str(runner.dir), runner.id, runner.run_id, runner.experiment_id])


def test_all_ranks_work_in_the_directory_that_rank_0_made(tmp_path: Path) -> None:
    succeed(3, differing_directories, tmp_path, folder=tmp_path)

    found = results(tmp_path, 3)
    assert found == [found[0]] * 3
    assert [str(path) for path in (tmp_path / "experiments").iterdir() if path.is_dir()] == [
        found[0][0]
    ]
    assert [list((tmp_path / f"rank-{rank}").iterdir()) for rank in range(3)] == [[], [], []]


WRITING = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}


def changes_of_files() -> list[str]:
    """What this process does to files from now on; the main one is slow about it."""
    changes: list[str] = []
    is_main = os.environ["RANK"] == "0"

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in WRITING) and arguments[0] != os.devnull:
            changes.append(f"{event} {arguments[0]}")
            time.sleep(0.003 if is_main else 0.0)

    sys.addaudithook(audit)
    return changes


def training_watched(folder: Path) -> None:
    changes = changes_of_files()
    checkpoint = ModelCheckpoint(every="1 step", keep_every="1 step", keep_last=1)
    runner = Regression(folder, {"resume": "auto"}, callbacks=[checkpoint], default_callbacks=True)
    runner.train()
    names = sorted(path.name for path in runner.checkpoint_dir.iterdir())
    leave(folder, [list(changes), names])


def test_one_process_alone_creates_renames_and_deletes_files(tmp_path: Path) -> None:
    succeed(3, training_watched, tmp_path, folder=tmp_path)

    (changes, names), *others = results(tmp_path, 3)
    assert {change.split()[0] for change in changes} >= {"open", "os.mkdir", "os.remove"}
    assert others == [[[], names]] * 2
    assert [name for name in names if name.startswith("step-")] == ["step-6.pth"]


def logging(folder: Path) -> None:
    runner = Regression(folder, default_callbacks=True)
    runner.train()
    runner.train()  # nothing to do, and no second set of handlers


def test_each_line_is_written_once(tmp_path: Path) -> None:
    ended = together(2, logging, tmp_path, folder=tmp_path)

    (log,) = (tmp_path / "experiments").glob("*/run.log")
    for text in (ended.output, log.read_text()):
        assert text.count("   1/2    4 |") == 1, ended.output
        assert text.count("2 processes") == 2  # one per training
