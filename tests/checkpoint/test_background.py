"""Background saves: one at a time, nothing lost, nothing swallowed."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from danling.checkpoint.background import AsyncWriter, snapshot
from danling.checkpoint.store import CheckpointStore
from danling.errors import CheckpointError
from danling.files import filesystem
from danling.files.failpoints import set_failpoints
from tests.support.crash_model import exit_status


def test_what_was_saved_is_reported_in_order_and_once():
    writer = AsyncWriter[int]()

    for number in range(5):
        writer.submit(partial(int, number))
    writer.drain()

    assert writer.completed() == [0, 1, 2, 3, 4]
    assert writer.completed() == []
    assert not writer.busy


def test_at_most_one_is_under_way():
    writer, running, most = AsyncWriter[None](), [], []

    def job() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    for _ in range(5):
        writer.submit(job)
    writer.drain()

    assert most == [1] * 5


def test_the_job_runs_beside_the_training_thread():
    writer, release, threads = AsyncWriter[None](), threading.Event(), []

    def job() -> None:
        threads.append(threading.current_thread())
        release.wait()

    writer.submit(job)

    assert writer.busy
    assert writer.completed() == []
    release.set()
    writer.drain()
    assert threads[0] is not threading.main_thread()
    assert not threads[0].daemon


def failing() -> None:
    raise CheckpointError(errno.ENOSPC, "No space left on device", "latest.pth")


def test_an_error_is_raised_once_at_the_next_check():
    writer = AsyncWriter[None]()
    writer.submit(failing)
    while writer.busy:
        time.sleep(0.001)

    with pytest.raises(CheckpointError) as caught:
        writer.check()

    assert caught.value.errno == errno.ENOSPC
    assert "failing" in [entry.name for entry in caught.traceback]
    writer.check()
    assert writer.completed() == []


def test_an_error_is_not_hidden_by_the_next_save():
    writer, started = AsyncWriter[None](), []
    writer.submit(failing)

    with pytest.raises(CheckpointError, match="No space left"):
        writer.submit(lambda: started.append(1))

    assert started == []
    writer.submit(lambda: started.append(2))
    writer.drain()
    assert started == [2]


def test_draining_raises_what_the_last_save_did():
    writer = AsyncWriter[None]()
    writer.submit(failing)

    with pytest.raises(CheckpointError, match="No space left"):
        writer.drain()


def test_waiting_has_an_end():
    writer, release = AsyncWriter[bool](timeout=0.05), threading.Event()
    writer.submit(release.wait)

    for wait in (writer.drain, lambda: writer.submit(lambda: True)):
        with pytest.raises(CheckpointError, match="still being written after") as caught:
            wait()
        assert caught.value.errno == errno.ETIMEDOUT
    release.set()
    writer.drain(timeout=10)


def test_a_long_wait_is_a_line_in_the_log(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(time, "monotonic", partial(next, count(0, 5)))  # 5 s from look to look
    writer = AsyncWriter[None]()

    writer.submit(lambda: None)
    writer.submit(lambda: None)
    writer.drain()

    assert caplog.messages == ["waited 5.0 s for the save before: save less often"] * 2


def test_a_forked_process_has_nothing_under_way_and_nothing_completed():
    writer, release = AsyncWriter[str](), threading.Event()
    writer.submit(lambda: "saved")
    writer.drain()
    writer.submit(lambda: str(release.wait()))

    def child() -> None:
        assert not writer.busy
        assert writer.completed() == []
        writer.check()
        writer.drain()
        writer.submit(lambda: "child")
        writer.drain()
        assert writer.completed() == ["child"]

    status = exit_status(child)
    release.set()
    writer.drain()

    assert status == 0
    assert writer.completed() == ["saved", "True"]


def run_script(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess:
    prologue = """
    import sys, time
    import torch
    from danling.checkpoint import CheckpointStore
    from danling.checkpoint.background import snapshot
    from danling.checkpoint.background import AsyncWriter

    store, writer = CheckpointStore(sys.argv[1]), AsyncWriter()
    def submit(step):
        taken = snapshot({"model": torch.tensor(step)})
        writer.submit(lambda: store.commit(taken, ["latest"], global_step=step, epoch=0))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prologue) + textwrap.dedent(script), str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "ending", ["", "raise ValueError", "sys.exit(3)", "raise KeyboardInterrupt"]
)
def test_python_does_not_exit_before_the_save_is_complete(tmp_path: Path, ending: str):
    run_script(
        f"submit(1)\n{ending}", tmp_path / "c", DANLING_FAILPOINT="checkpoint.after_write=sleep:0.3"
    )

    assert CheckpointStore(tmp_path / "c").load()[0]["model"] == 1


@pytest.mark.parametrize("place", ["after_open", "after_write", "after_fsync", "after_replace"])
def test_a_kill_during_a_background_save_keeps_the_one_before(tmp_path: Path, place: str):
    store = CheckpointStore(tmp_path / "checkpoints")

    def child() -> None:
        writer = AsyncWriter[Path]()
        for step in (1, 2):
            taken = snapshot({"model": torch.tensor(step)})
            names = ["latest", f"step-{step}"]
            writer.submit(partial(store.commit, taken, names, global_step=step, epoch=0))
            writer.drain()
            set_failpoints(f"checkpoint.{place}=kill")

    assert exit_status(child) == -9
    assert store.load()[0]["model"] in (1, 2)


def test_a_full_disk_is_an_error_on_the_training_thread_and_the_next_save_works(tmp_path: Path):
    store, writer = CheckpointStore(tmp_path / "checkpoints"), AsyncWriter[Path]()

    def submit(step: int) -> None:
        taken = snapshot({"model": torch.tensor(step)})
        writer.submit(lambda: store.commit(taken, ["latest"], global_step=step, epoch=0))

    submit(1)
    writer.drain()
    set_failpoints("checkpoint.before_write=raise:28@1")
    submit(2)
    with pytest.raises(CheckpointError, match="step 2 was not saved: No space left"):
        writer.drain()
    assert store.load()[0]["model"] == 1
    submit(3)
    writer.drain()
    set_failpoints("")

    assert store.load()[0]["model"] == 3
    assert [path.name for path in writer.completed()] == ["latest.pth", "latest.pth"]


def test_training_that_goes_on_during_the_write_changes_nothing_in_the_file(tmp_path: Path):
    store, writer = CheckpointStore(tmp_path / "checkpoints"), AsyncWriter[Path]()
    layers = [torch.zeros(50_000) for _ in range(8)]
    tied = {**{str(index): layer for index, layer in enumerate(layers)}, "tied": layers[0]}

    for step in range(1, 15):
        for layer in layers:
            layer.fill_(step)
        if step % 3 == 0:
            taken = snapshot({"model": tied})
            names = ["latest", f"step-{step}"]
            writer.submit(partial(store.commit, taken, names, global_step=step, epoch=0))
    writer.drain()

    for step in (3, 6, 9, 12):
        model = store.load(f"step-{step}")[0]["model"]
        assert {float(value) for layer in model.values() for value in layer.unique()} == {step}
        assert model["tied"].data_ptr() == model["0"].data_ptr()
    size = (store.directory / "latest.pth").stat().st_size
    assert size < 1.02 * 8 * 50_000 * 4


def test_nothing_is_rotated_away_before_its_successor_is_durable(tmp_path: Path, monkeypatch):
    store, writer = CheckpointStore(tmp_path / "checkpoints"), AsyncWriter[list[str]]()
    store.commit({"model": torch.tensor(1)}, ["epoch-1"], global_step=1, epoch=1)
    taken = snapshot({"model": torch.tensor(2)})
    started, release = threading.Event(), threading.Event()
    real_fsync = filesystem.fsync_file

    def slow_fsync(descriptor: int) -> None:
        started.set()
        release.wait()
        real_fsync(descriptor)

    monkeypatch.setattr(filesystem, "fsync_file", slow_fsync)

    def job() -> list[str]:
        store.commit(taken, ["epoch-2"], global_step=2, epoch=2)
        return store.rotate(["epoch-2"])

    writer.submit(job)
    started.wait()
    during = sorted(path.name for path in store.directory.glob("*.pth"))
    release.set()
    writer.drain()

    assert during == ["epoch-1.pth"]
    assert writer.completed() == [["epoch-1"]]
    assert [entry.name for entry in store.candidates()] == ["epoch-2"]
