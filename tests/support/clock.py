"""A clock that tests set: time passes when they say so, and a slow machine changes nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from danling.callbacks import LambdaCallback


class SetClock:
    """The clocks of `time`; all stand still until they are moved.

    It is for one thread: what waits for a time-out in Python itself is not concerned.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        started, date = time.monotonic(), time.time()
        monkeypatch.setattr(time, "monotonic", lambda: started + self.passed)
        monkeypatch.setattr(time, "time", lambda: date + self.passed)
        monkeypatch.setattr(time, "perf_counter", lambda: started + self.passed)

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.passed += seconds

    def each_step_takes(self, seconds: float, **steps: float) -> LambdaCallback:
        """A callback that lets each step take so long; `s5=100` is another time for the fifth."""

        def on_before_step(runner: Any) -> None:
            self.pass_time(steps.get(f"s{runner.global_step + 1}", seconds))

        return LambdaCallback(name="each_step_takes", on_before_step=on_before_step)
