"""Run tests on other versions than those of `constraints.txt`, in an environment of their own.

    python -m tests.versions --python python3.13            another Python, the same packages
    python -m tests.versions --lowest                       the lowest versions that are promised
    python -m tests.versions --newest                       the newest torch, accelerate and others
    python -m tests.versions --lowest tests/config -x       with arguments for pytest

The lowest versions are the bounds of `dependencies` in `pyproject.toml`. With `--lowest` and
`--newest` the tools of the tests keep their versions, and what torch needs is as torch says.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def name_of(requirement: str) -> str:
    """The name of the package of a requirement, as the index has it."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def constraints(which: str) -> list[str]:
    """The lines of a file of constraints for `pinned`, `lowest` or `newest` versions."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    if which == "pinned":
        return pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own: Iterable[str] = project["dependencies"]
    tools = {name_of(line) for line in project["optional-dependencies"]["test"]}
    kept = [line for line in pinned if name_of(line) in tools - {name_of(line) for line in own}]
    return kept + [line.replace(">=", "==") for line in own if which == "lowest"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environment and run the tests; returns the exit code of pytest.

    Raises:
        subprocess.CalledProcessError: The environment cannot be made.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="the Python to run the tests on")
    versions = parser.add_mutually_exclusive_group()
    for which in ("lowest", "newest"):
        versions.add_argument(f"--{which}", dest="which", action="store_const", const=which)
    options, rest = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("\n".join(constraints(options.which or "pinned")))
        subprocess.run([options.python, "-m", "venv", f"{folder}/venv"], check=True)
        python = f"{folder}/venv/bin/python"
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(file)]
        subprocess.run([*install, "--editable", f"{ROOT}[test]"], check=True)
        shown = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True)
        used = [line for line in shown.stdout.splitlines() if re.match("torch=|accelerate=", line)]
        print(f"{options.python}: {', '.join(used)}", flush=True)
        environment = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
        return subprocess.run([python, "-m", "pytest", *rest], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
