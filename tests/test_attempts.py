"""What fails is told once, counted, and never more than a warning."""

from __future__ import annotations

import logging

import pytest

from danling.logs import Attempts

LOGGER = logging.getLogger("danling.test")


def test_only_the_first_failure_is_told_and_then_their_number(caplog):
    attempts = Attempts("the page")

    for step in range(3):
        with attempts.caught(LOGGER):
            raise ConnectionError(f"no route at {step}")
    attempts.report(LOGGER)

    assert caplog.messages == [
        "the page failed, and the training goes on: ConnectionError: no route at 0",
        "the page failed 3 times",
    ]
    assert attempts.failures == 0


def test_success_says_nothing(caplog):
    attempts = Attempts("the page")

    with attempts.caught(LOGGER):
        pass
    attempts.report(LOGGER)

    assert caplog.messages == []


def test_a_strict_one_raises():
    with pytest.raises(OSError, match="full"), Attempts("the page", strict=True).caught(LOGGER):
        raise OSError("full")


def test_an_interrupt_is_no_failure():
    with pytest.raises(KeyboardInterrupt), Attempts("the page").caught(LOGGER):
        raise KeyboardInterrupt
