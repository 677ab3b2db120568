from __future__ import annotations

import time

from danling.runner.progress import Clock, Counters


def test_counters_begin_at_nothing_completed():
    assert Counters() == Counters(epoch=0, global_step=0, batch_index=0)


def test_the_clock_runs_between_start_and_stop_only():
    clock = Clock(before=100.0)
    assert clock.seconds == 100.0

    clock.start()
    time.sleep(0.02)
    clock.start()
    running = clock.seconds
    clock.stop()
    stopped = clock.seconds
    time.sleep(0.02)

    assert 100.02 <= running <= stopped == clock.seconds == clock.before
    clock.stop()
    assert clock.seconds == stopped


def test_the_clock_goes_on_after_a_pause():
    clock = Clock()
    clock.start()
    clock.stop()
    first = clock.seconds

    clock.start()
    time.sleep(0.01)

    assert clock.seconds >= first + 0.01
