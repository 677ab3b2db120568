"""Fail points: nothing when off, the named fault when on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from danling.errors import ConfigError
from danling.files.failpoints import VARIABLE, failpoint, set_failpoints
from tests.support.calls import calls_of
from tests.support.crash_model import exit_status


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    set_failpoints("")


def test_a_fail_point_that_nobody_named_does_nothing():
    set_failpoints("somewhere.else=raise:5")

    failpoint("checkpoint.after_fsync")


def test_raise_raises_the_error_of_the_system_at_every_hit():
    set_failpoints("a.b=raise:28")

    for _ in range(2):
        with pytest.raises(OSError, match="No space left") as caught:
            failpoint("a.b")
        assert caught.value.errno == 28


def test_a_number_names_one_hit():
    set_failpoints("a.b=raise:5@2")

    failpoint("a.b")
    with pytest.raises(OSError, match="Input/output"):
        failpoint("a.b")
    failpoint("a.b")


def test_sleep_waits(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    set_failpoints("a.b=sleep:0.05")

    failpoint("a.b")

    assert waits == [0.05]


def test_kill_ends_the_process_as_sigkill_does():
    def child() -> None:
        set_failpoints("a.b=kill")
        failpoint("a.b")

    assert exit_status(child) == -signal.SIGKILL


def test_several_are_set_at_once():
    set_failpoints("a.b=raise:5,c.d=raise:28@1")

    with pytest.raises(OSError, match="No space left"):
        failpoint("c.d")
    with pytest.raises(OSError, match="Input/output"):
        failpoint("a.b")


@pytest.mark.parametrize("text", ["a.b", "a.b=die", "a.b=raise", "a.b=kill@0", "a b=kill"])
def test_what_is_no_fail_point_is_an_error_that_shows_the_form(text: str):
    with pytest.raises(ConfigError, match="NAME=raise:ERRNO"):
        set_failpoints(text)


def test_the_variable_is_read_when_the_process_starts():
    program = "from danling.files.failpoints import failpoint; failpoint('a.b')"

    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, VARIABLE: "a.b=raise:28"},
        capture_output=True,
        text=True,
    )

    assert "OSError: [Errno 28] No space left on device" in result.stderr


@pytest.mark.parametrize("others", ["", "c.d=kill"])
def test_an_idle_fail_point_calls_nothing(others: str):
    set_failpoints(others)

    assert calls_of(lambda: failpoint("a.b")) == ["<lambda>", "failpoint"]
