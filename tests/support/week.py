"""The runs of examples/week.py, made once for a module of tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from danling.run.record import RunFile

ROOT = Path(__file__).resolve().parents[2]


def make_week(folder: Path, seeds: int = 2) -> Path:
    """A git repository with a script and its runs; two were killed, one has failed."""
    script = ROOT / "examples" / "week.py"
    subprocess.run(
        [sys.executable, str(script), str(folder), str(seeds)], check=True, capture_output=True
    )
    return folder


def copy_week(week: Path, target: Path) -> Path:
    """A copy that a test may change, and in which its runs were started."""
    shutil.copytree(week, target, symlinks=True)
    for record in target.glob("experiments/*/run.json"):
        moved = json.loads(record.read_text().replace(str(week), str(target)))
        RunFile(record, moved).save()
    return target
