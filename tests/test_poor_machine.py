"""Machines on which something is missing: the run goes on, or fails before its first step."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import danling as dl
from danling.testing import TinyRunner
from tests.distributed.processes import Ended, together


class Steps(dl.Callback):
    def on_step(self, runner: dl.AccelerateRunner) -> None:
        Path("steps").touch()


def train(prepare: Callable[[], None]) -> None:
    runner = TinyRunner({"max_epochs": 2}, callbacks=[Steps()], default_callbacks=True)
    prepare()
    try:
        runner.train()
    except OSError as error:
        sys.exit(error.errno)
    assert (runner.global_step, runner.status) == (8, "finished")


def trained(prepare: Callable[[], None], folder: Path) -> Ended:
    return together(1, train, prepare, folder=folder)


def fill_the_disk() -> None:
    """Any write is an error from now on; Python ignores the signal that comes with it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def close_the_terminal() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing, 2)


def forget_the_user() -> None:
    for name in [name for name in os.environ if name != "RANK"]:
        del os.environ[name]


def test_a_disk_that_is_full_from_the_start_ends_the_run_before_a_step(tmp_path: Path) -> None:
    ended = trained(fill_the_disk, tmp_path)

    assert ended.codes == [errno.EFBIG]
    assert not Path("steps").exists()


def test_a_reader_of_the_output_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    assert trained(close_the_terminal, tmp_path).codes == [0]


def test_neither_a_home_nor_a_user_nor_a_terminal_is_needed(tmp_path: Path) -> None:
    ended = trained(forget_the_user, tmp_path)

    assert ended.codes == [0], ended.output
