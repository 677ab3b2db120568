"""The clock jumps, git is missing or broken: a run starts, saves and goes on all the same."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from danling.callbacks import LambdaCallback, ModelCheckpoint, Preemption, TensorBoard
from danling.run import lock
from danling.run import record as records
from tests.identity.test_git import fake_git
from tests.support.repositories import git, make_repository
from tests.support.resume_runs import STEPS, interrupted, log, make_runner, record, trained, weights

HOUR, YEAR = 3600.0, 365 * 86400.0

# The clock


class Clock:
    """The time of the system, which somebody sets; the monotonic clock cannot be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        now, now_ns = time.time, time.time_ns
        clock = self

        class Set(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.now(tz) + timedelta(seconds=clock.ahead)

        monkeypatch.setattr(time, "time", lambda: now() + self.ahead)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(self.ahead * 1e9))
        for module in (records, lock):
            monkeypatch.setattr(module, "datetime", Set)

    def jumping(self) -> LambdaCallback:
        """Sets it back and forth, and changes the time zone, while a run goes on."""
        jumps = {2: -HOUR, 4: YEAR, 7: -YEAR, 9: 0.0, 10: 2 * YEAR}

        def jump(runner: Any) -> None:
            self.ahead = jumps.get(runner.global_step, self.ahead)
            os.environ["TZ"] = "Pacific/Auckland" if runner.global_step % 2 else "UTC"
            time.tzset()

        return LambdaCallback(name="clock", on_step=jump)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    yield Clock(monkeypatch)
    monkeypatch.undo()
    time.tzset()


def rows(runner: Any) -> list[int]:
    lines = (runner.dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["global_step"] for line in lines]


def test_a_clock_that_jumps_changes_nothing_of_a_run(clock: Clock):
    whole = trained([ModelCheckpoint("1 h")])
    saved: list[int] = []
    watch = LambdaCallback(name="watch", on_save=lambda r, path: saved.append(r.global_step))
    limit = Preemption(max_time="1h")  # a year that the clock jumps is none of it

    runner = trained([ModelCheckpoint("1 h", save_top_k=0), limit, clock.jumping(), watch])

    assert runner.status == "finished"
    assert saved == [2 * STEPS]
    assert weights(runner) == weights(whole)
    assert runner.results == whole.results
    assert rows(runner) == rows(whole)
    checkpoint, _ = runner.checkpoints.load()
    assert 0 < checkpoint["run"]["seconds"] < 60
    assert runner.uuid != whole.uuid


def test_the_newest_checkpoint_is_the_newest_whatever_the_times_of_files_say(clock: Clock):
    callbacks = [ModelCheckpoint("1 step", keep_every="2 steps"), TensorBoard()]
    first = interrupted(10, [*callbacks, clock.jumping()])
    for number, path in enumerate(sorted(first.checkpoint_dir.glob("*.pth"))):
        moment = {"latest": 0.0, "previous": 1e9}.get(path.stem, 1e9 - number)
        os.utime(path, (moment, moment))
    clock.ahead = -3 * YEAR

    again = trained([ModelCheckpoint("1 step"), TensorBoard()], resume="auto")

    assert again.dir == first.dir
    assert again.resume_report is not None
    assert (again.resume_report["global_step"], again.resume_report["exact"]) == (9, True)
    whole = trained()
    assert weights(again) == weights(whole)
    assert rows(again) == rows(whole)
    events = sorted(path.name for path in again.dir.glob("events.out.tfevents.*"))
    numbers = [int(name.split(".")[3]) for name in events]
    assert numbers == sorted(numbers)
    assert [launch["start_step"] for launch in record(again)["launches"]] == [0, 9]


def test_runs_of_the_same_instant_have_their_own_directories(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    instant = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    monkeypatch.setattr(time, "time", lambda: instant)
    monkeypatch.setattr(time, "time_ns", lambda: int(instant * 1e9))

    found = [trained(max_steps=1) for _ in range(3)]

    assert len({runner.dir for runner in found}) == len({runner.id for runner in found}) == 3


# Git


def unborn(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".git")
    git(project, "init", "--quiet")


def no_repository(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".git")


def no_program(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def hanging(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_git(tmp_path / "bin", "sleep 60"))


def failing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_git(tmp_path / "bin", "echo broken >&2; exit 3"))


def detached(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "checkout", "--quiet", "--detach")


def dirty(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "train.py").write_text("lr = 7\n")


def garbage_head(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".git" / "HEAD").write_bytes(os.urandom(100))


def empty_objects(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (project / ".git" / "objects").glob("??/*"):
        path.chmod(0o600)
        path.write_bytes(b"")


def index_lock(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".git" / "index.lock").touch()


def foreign(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def git_dir(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))


def worktree(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    move_to(tmp_path / "linked", monkeypatch)


def submodule(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = make_repository(tmp_path / "inner")
    git(project, "submodule", "--quiet", "add", str(inner), "inner")
    move_to(project / "inner", monkeypatch)


WHOLE = [detached, dirty, index_lock, foreign, git_dir, worktree, submodule]
"""Where the commit and the content of the working tree are known all the same."""
CASES = [*WHOLE, unborn, no_repository, no_program, hanging, failing, garbage_head, empty_objects]


def move_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(folder / "train.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    monkeypatch.chdir(folder)


THINNED = [dirty, hanging, garbage_head, submodule]
SWEEP = [
    pytest.param(case, marks=() if case in THINNED else pytest.mark.exhaustive, id=case.__name__)
    for case in CASES
]


@pytest.mark.parametrize("damage", SWEEP)
def test_whatever_git_does_a_run_starts_and_goes_on(
    damage: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = make_repository(tmp_path / "project")
    move_to(project, monkeypatch)
    damage(project, tmp_path, monkeypatch)
    first = interrupted(9, code_timeout=2)
    again = make_runner(resume=str(first.dir), code_timeout=2)
    again.train()

    code = record(first)["code"]
    assert (again.dir, again.global_step) == (first.dir, 2 * STEPS)
    assert again.resume_report is not None
    assert again.resume_report["exact"]
    assert ("WARNING" in log(first)) == (damage is hanging)
    assert code["partial"] == (damage is hanging)
    for variable in ("GIT_DIR", "GIT_TEST_ASSUME_DIFFERENT_OWNER"):
        monkeypatch.delenv(variable, raising=False)
    if damage in WHOLE:
        assert code["commit"] == git(Path.cwd(), "rev-parse", "HEAD")
        assert code["tree"]
