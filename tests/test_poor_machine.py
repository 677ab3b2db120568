"""Machines on which something is missing: the run goes on, or fails before its first step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import resource, sys, danling as dl
from danling.testing import TinyRunner

class Steps(dl.Callback):
    def on_step(self, runner):
        open("steps", "a").write("x")

runner = TinyRunner({"max_epochs": 2}, callbacks=[Steps()], default_callbacks=True)
if sys.argv[1:] == ["full"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # an error for each write, as a full disk is
runner.train()
open("end", "w").write(str(runner.global_step))
"""


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], text=True, **options)


def test_a_disk_that_is_full_from_the_start_ends_the_run_before_a_step(tmp_path: Path) -> None:
    process = start("full", stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "File too large" in errors
    assert not (tmp_path / "steps").exists()


def test_a_reader_of_the_output_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    process = start(stdout=writing, stderr=writing)
    os.close(writing)
    process.wait(timeout=60)

    assert (tmp_path / "end").read_text() == "8"
    assert process.returncode in (0, 120)  # as Python itself says when it cannot flush


def test_neither_a_home_nor_a_user_nor_a_terminal_is_needed(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}

    process = start(env=kept, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert (tmp_path / "end").read_text() == "8"
