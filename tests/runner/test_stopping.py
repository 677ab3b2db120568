"""A stop: the first reason is kept, and a signal says how the run ends."""

from __future__ import annotations

import signal

import pytest

from danling.distributed.world import World
from danling.runner.stopping import Stopping, exit_for_signal


def test_the_first_reason_is_kept_until_the_next_run():
    stopping = Stopping(World())
    assert (stopping.reason, stopping.status) == (None, "finished")

    stopping.ask("first")
    stopping.ask("second")
    assert (stopping.reason, stopping.status) == ("first", "stopped")

    stopping.reset()
    assert (stopping.reason, stopping.signal, stopping.status) == (None, None, "finished")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted")]
)
def test_a_signal_is_a_reason_and_a_status(number: signal.Signals, status: str):
    stopping = Stopping(World())

    stopping.interrupt(number)
    stopping.interrupt(signal.SIGUSR1)

    assert stopping.reason == f"signal {number.name}"
    assert (stopping.agree_on_signal(), stopping.status) == (number, status)


def test_the_exit_code_is_that_of_the_signal():
    cause = OSError("no space")

    with pytest.raises(SystemExit) as left:
        exit_for_signal(signal.SIGTERM, "why", cause, alone=True)
    with pytest.raises(KeyboardInterrupt, match="why"):
        exit_for_signal(signal.SIGINT, "why", None, alone=True)

    assert left.value.code == 128 + signal.SIGTERM
    assert left.value.__cause__ is cause
