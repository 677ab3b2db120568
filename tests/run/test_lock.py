"""One process at a time works in a directory, and a dead one keeps nobody out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from danling.errors import RunDirectoryError, RunLockedError
from danling.run.lock import DirectoryLock, LockHolder, is_locked, lock_holder

HOLD = """
import os, sys, time
from danling.run.lock import DirectoryLock
DirectoryLock(sys.argv[1], run="the run").acquire()
worker = os.fork() if "fork" in sys.argv else None
if worker != 0:
    print(worker, flush=True)
time.sleep(60)
"""


@contextmanager
def holder_of(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a directory."""
    command = [sys.executable, "-c", HOLD, str(directory), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_is_told_who_works_there(tmp_path):
    with holder_of(tmp_path) as process:
        first_line(process)

        with pytest.raises(RunLockedError) as caught:
            DirectoryLock(tmp_path).acquire()

        assert f"in use by process {process.pid} on {socket.gethostname()}" in str(caught.value)
        assert is_locked(tmp_path)
        holder = lock_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.run) == (process.pid, "the run")


def test_looking_does_not_disturb_the_holder(tmp_path):
    with holder_of(tmp_path) as process:
        first_line(process)
        before = (tmp_path / ".lock").stat()

        assert [is_locked(tmp_path) for _ in range(3)] == [True] * 3

        after = (tmp_path / ".lock").stat()
        assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
        with pytest.raises(RunLockedError):
            DirectoryLock(tmp_path).acquire()


def test_a_killed_process_frees_the_lock_at_once_though_its_workers_live(tmp_path):
    with holder_of(tmp_path, "fork") as process:
        worker = int(first_line(process))
        try:
            process.send_signal(signal.SIGKILL)
            process.wait()
            os.kill(worker, 0)  # alive, or this raises

            assert not is_locked(tmp_path)
            with DirectoryLock(tmp_path) as lock:
                assert lock.held
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_second_runner_of_this_process_is_kept_out_and_the_first_keeps_the_lock(tmp_path):
    alias = tmp_path / "alias"
    directory = tmp_path / "run"
    directory.mkdir()
    alias.symlink_to(directory)
    with DirectoryLock(directory):
        for path in (directory, alias):
            with pytest.raises(RunLockedError, match="another runner of this process"):
                DirectoryLock(path).acquire()
            assert is_locked(path)

        assert not another_process_can_lock(directory)

    assert another_process_can_lock(directory)


def another_process_can_lock(directory: Path) -> bool:
    script = "import sys; from danling.run.lock import DirectoryLock\n"
    script += "DirectoryLock(sys.argv[1]).acquire()"
    done = subprocess.run([sys.executable, "-c", script, str(directory)], capture_output=True)
    return done.returncode == 0


def test_taking_and_giving_back_twice_changes_nothing(tmp_path):
    lock = DirectoryLock(tmp_path)
    calls = [lock.release, lock.acquire, lock.acquire, lock.release, lock.release, lock.acquire]

    held = [(call(), lock.held)[1] for call in calls]
    lock.release()

    assert held == [False, True, True, False, False, True]


def test_a_forked_worker_does_not_hold_its_parents_lock_and_cannot_free_it(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()

    child = os.fork()
    if child == 0:
        held, seen = lock.held, is_locked(tmp_path)
        lock.release()
        os._exit(0 if (held, seen) == (False, True) else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert not another_process_can_lock(tmp_path)
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_in_the_file_system_a_lease_takes_their_place(tmp_path, monkeypatch, code):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with DirectoryLock(tmp_path, run="the run") as lock:
        assert lock.held
        holder = lock_holder(tmp_path)
        assert holder is not None
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on .*delete .*lease"):
            DirectoryLock(tmp_path).acquire()

    assert holder == LockHolder(socket.gethostname(), os.getpid(), holder.start_time, "the run")
    assert not is_locked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("host", "is_free"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_lease_of_a_process_that_ended_is_taken_over_on_its_own_host(
    tmp_path, monkeypatch, host, is_free
):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    content = {"host": host, "pid": gone.pid, "start_time": "then", "run": "old"}
    (tmp_path / ".lock.lease").write_text(json.dumps(content))

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)

    assert is_locked(tmp_path) is not is_free
    if is_free:
        with DirectoryLock(tmp_path) as lock:
            assert lock.held
    else:
        with pytest.raises(RunLockedError, match=rf"process {gone.pid} on elsewhere since then"):
            DirectoryLock(tmp_path).acquire()


def test_a_link_in_the_place_of_the_lock_is_refused_and_its_target_untouched(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)

    with pytest.raises(RunDirectoryError, match="it is a symbolic link"):
        DirectoryLock(tmp_path).acquire()

    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_something_else_in_the_place_of_the_lock_is_refused(tmp_path, kind):
    path = tmp_path / ".lock"
    path.mkdir() if kind == "directory" else os.mkfifo(path)

    with pytest.raises(RunDirectoryError):
        DirectoryLock(tmp_path).acquire()

    assert not is_locked(tmp_path)


def test_a_directory_that_is_gone_is_an_error_and_not_locked(tmp_path):
    assert not is_locked(tmp_path / "gone")

    with pytest.raises(RunDirectoryError, match="No such file or directory"):
        DirectoryLock(tmp_path / "gone").acquire()


@pytest.mark.parametrize("content", ["", "garbage", "[]", '{"host": 1}', "\x00" * 100])
def test_a_lock_file_that_says_nothing_is_no_obstacle(tmp_path, content):
    (tmp_path / ".lock").write_text(content)

    assert not is_locked(tmp_path)
    with DirectoryLock(tmp_path, run="new"):
        pass

    written = json.loads((tmp_path / ".lock").read_text())  # not before: reading drops the lock
    assert (written["run"], written["pid"]) == ("new", os.getpid())
