"""The logger of a run, and failures that are logged once, counted, and end no training."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from danling.logs import Attempts, close_logger, open_logger

LOGGER = logging.getLogger("danling.test")


def test_a_line_is_once_in_the_file_and_once_on_the_console(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    root = logging.getLogger()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    before = (root.level, list(root.handlers))

    try:
        for _ in range(2):  # a second runner in the process
            logger = open_logger("danling.run.once", tmp_path / "run.log")
        logger.info("hello")
        close_logger(logger)
        after = (root.level, list(root.handlers))
    finally:
        root.removeHandler(handler)

    captured = capfd.readouterr()
    assert captured.err.count("hello") == 1
    assert captured.out == ""
    assert (tmp_path / "run.log").read_text().count("hello") == 1
    assert stream.getvalue() == ""
    assert after == before


def test_details_go_to_the_file_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    logger = open_logger("danling.run.details", tmp_path / "run.log")

    logger.debug("step 50")
    close_logger(logger)

    assert capfd.readouterr().err == ""
    assert "DEBUG    step 50" in (tmp_path / "run.log").read_text()


def test_a_warning_says_that_it_is_one(capfd: pytest.CaptureFixture[str]):
    logger = open_logger("danling.run.warning")

    logger.warning("the disk is full")
    close_logger(logger)

    assert capfd.readouterr().err.partition(" ")[2] == "warning: the disk is full\n"


def test_a_process_without_file_and_console_says_nothing(capfd: pytest.CaptureFixture[str]):
    logger = open_logger("danling.run.silent", console=False)

    logger.error("unheard")
    close_logger(logger)

    assert capfd.readouterr() == ("", "")


def test_the_log_of_a_resumed_run_is_appended_to_on_a_line_of_its_own(tmp_path: Path):
    path = tmp_path / "run.log"
    path.write_text("first\nhalf a li")

    logger = open_logger("danling.run.resumed", path, console=False)
    logger.info("second")
    close_logger(logger)

    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["first", "li", "second"]


def test_lines_do_not_tear_a_bar(monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = open_logger("danling.run.bar")

    with tqdm(total=10, file=terminal, ncols=40) as bar:
        bar.update(5)
        bar.refresh()
        logger.info("epoch 1")
    close_logger(logger)

    (line,) = [line for line in terminal.getvalue().split("\n") if "epoch 1" in line]
    assert line.split("\r")[-1].endswith(" epoch 1")
    assert "%" not in line.split("\r")[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_once_and_ends_nothing(capfd: pytest.CaptureFixture[str]):
    logger = open_logger("danling.run.full", "/dev/full")

    for number in range(3):
        logger.info("line %d", number)
    close_logger(logger)

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    assert sum("writing full failed" in line for line in lines) == 1


def test_a_closed_terminal_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = open(tmp_path / "terminal", "w")  # noqa: SIM115  # closed below
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = open_logger("danling.run.closed", tmp_path / "run.log")
    terminal.close()

    logger.info("still here")
    close_logger(logger)

    assert "still here" in (tmp_path / "run.log").read_text()


def test_a_directory_that_cannot_be_written_is_an_error_at_once(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        open_logger("danling.run.nowhere", tmp_path / "missing" / "run.log")


@pytest.mark.parametrize("configured", [False, True])
def test_what_the_library_says_is_in_the_log_of_the_run(
    configured: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    stream = io.StringIO()
    root_handlers = [logging.StreamHandler(stream)] if configured else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", root_handlers)
        logger = open_logger("danling.run.library", tmp_path / "run.log")

        logging.getLogger("danling.checkpoint.store").warning("latest.pth is damaged")
        close_logger(logger)
        shown = capfd.readouterr().err.splitlines()
        logging.getLogger("danling.checkpoint.store").warning("after the run")

    assert len(shown) == (0 if configured else 1)
    assert stream.getvalue().count("latest.pth is damaged") == configured
    assert (tmp_path / "run.log").read_text().endswith("WARNING  latest.pth is damaged\n")


# Attempts


def test_only_the_first_failure_is_logged_and_then_their_number(caplog):
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


def test_an_attempt_that_succeeds_says_nothing(caplog):
    attempts = Attempts("the page")

    with attempts.caught(LOGGER):
        pass
    attempts.report(LOGGER)

    assert caplog.messages == []


def test_a_failure_of_a_strict_attempt_is_raised():
    with pytest.raises(OSError, match="full"), Attempts("the page", strict=True).caught(LOGGER):
        raise OSError("full")


def test_an_interrupt_is_never_caught():
    with pytest.raises(KeyboardInterrupt), Attempts("the page").caught(LOGGER):
        raise KeyboardInterrupt
