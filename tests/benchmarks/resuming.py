"""What it takes to go on from a checkpoint: time, and memory beside that of the model.

Each measure is a process of its own, so that no memory of an earlier one is left. Counted is memory
that the system cannot take back (`RssAnon` of Linux): pages of a file that is mapped are not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, str]
_ROOT = Path(__file__).parents[2]
_PROGRAM = Path(__file__).with_name("resumed.py")


def rows(quick: bool) -> Iterator[Row]:
    """A model of each size, gone on with in its run and taken into a new one."""
    for megabytes in (16, 256) if quick else (16, 256, 2048):
        with tempfile.TemporaryDirectory() as folder:
            measured("save", megabytes, folder)
            for what in ("read", "resume", "from_checkpoint"):
                found = measured(what, megabytes, folder)
                yield (
                    f"{megabytes} MB: {NAMES[what]}",
                    f"{found['seconds']:.2f} s, at most {found['megabytes']:.0f} MB more",
                )


NAMES = {
    "read": "`read_checkpoint`, which gives all of it",
    "resume": "`resume=`, more than the model of the script",
    "from_checkpoint": "`from_checkpoint`, more than the model that it is given",
}


def measured(what: str, megabytes: int, folder: str) -> dict[str, float]:
    """The seconds of a step of `resumed.py`, and by how much its memory grew at most."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(_PROGRAM), what, str(megabytes), folder],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
