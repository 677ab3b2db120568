"""Sweeps as processes of their own, which a test kills and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def start(project: Path, *flags: str) -> subprocess.Popen[str]:
    """Start a sweep of train.py in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "danling", "sweep", "train.py", *flags],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(project: Path, *flags: str) -> tuple[int, str, str]:
    """Run a sweep to its end: exit code, what it printed, and its messages."""
    process = start(project, *flags)
    out, err = process.communicate()
    return process.returncode, out.strip(), err


def wait_for_lines(process: subprocess.Popen[str], *beginnings: str) -> None:
    """Read messages until one begins with each of these, in this order."""
    assert process.stderr is not None
    for beginning in beginnings:
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith(beginning) for line in lines), f"no line {beginning!r}"


def kill_with_children(process: subprocess.Popen[str]) -> None:
    """Kill a sweep and all that it has started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
