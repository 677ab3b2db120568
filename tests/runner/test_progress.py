from __future__ import annotations

import pytest

from danling.runner.progress import Clock, Counters
from tests.support.clock import SetClock


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    return SetClock(monkeypatch)


def test_counters_begin_at_nothing_completed():
    assert Counters() == Counters(epoch=0, global_step=0, batch_index=0)


def test_the_clock_runs_between_start_and_stop_only(time: SetClock):
    clock = Clock(before=100.0)
    assert clock.seconds == 100.0

    clock.start()
    time.pass_time(2)
    clock.start()
    time.pass_time(1)
    running = clock.seconds
    clock.stop()
    time.pass_time(4)

    assert running == clock.seconds == clock.before == 103
    clock.stop()
    assert clock.seconds == 103


def test_the_clock_goes_on_after_a_pause(time: SetClock):
    clock = Clock()
    clock.start()
    time.pass_time(3)
    clock.stop()
    time.pass_time(8)

    clock.start()
    time.pass_time(2)

    assert clock.seconds == 5
