"""Fresh virtual environments in which DanLing is installed, in every way that people install it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAYS = ["checkout", "editable", "editable without symlinks", "install", "wheel", "sdist"]
PATTERNS = shutil.ignore_patterns(
    *(".*_cache", ".coverage*", ".editable", ".git", ".hypothesis", ".venv", "__pycache__"),
    *("*.egg-info", "build", "dist"),
)


def LEFT_OUT(folder: str, names: list[str]) -> set[str]:  # a constant for `copytree`
    """What no copy of the checkout holds: what tools and runs leave in it."""
    runs = {"experiments"} if Path(folder) == ROOT else set()
    return PATTERNS(folder, names) | runs


@dataclass(frozen=True)
class Environment:
    """A Python that finds DanLing, and the packages that it needs, but not this checkout.

    Attributes:
        python: The interpreter of the environment.
        source: The copy of the checkout from which DanLing was installed.
        home: The folder for programs of the user's.
        variables: Environment variables for every program.
    """

    python: Path
    source: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the user's folder, away from this checkout."""
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command,
            capture_output=True,
            cwd=self.home,
            env={**outside, **self.variables},
            text=True,
            timeout=300,
        )

    def python_prints(self, program: str) -> str:
        """Run `program` as a script of the user's, and return what it prints."""
        script = self.home / "program.py"
        script.write_text(program, encoding="utf-8")
        finished = self.run(str(self.python), str(script))
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()


def copy_checkout(to: Path, symlinks: bool = True) -> Path:
    """Copy this checkout to `to`; without symbolic links, as git clones it on Windows."""
    shutil.copytree(ROOT, to, symlinks=True, ignore=LEFT_OUT)
    link = to / "danling" / "callbacks"
    if link.is_dir() and not symlinks:
        link.unlink()
        link.write_text("../callbacks")
    return to


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Build the sdist of `source`, and the wheel from that sdist."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    finished = subprocess.run(build, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def make_environment(folder: Path, way: str) -> Environment:
    """Make a virtual environment in which DanLing is found in one of the `WAYS`.

    The packages that DanLing needs are those of the environment that runs the tests.
    """
    source = copy_checkout(folder / "source", symlinks="without symlinks" not in way)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # A line of a .pth file adds a folder to the end of the path. The .pth files in that folder are
    # not read: an editable install of the environment outside does not count in the one inside.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "outside.pth").write_text("\n".join(sorted(paths)))
    home = folder / "home"
    home.mkdir()
    if way == "checkout":
        return Environment(python, source, source)
    target: list[str] = [str(source)]
    if way.startswith("editable"):
        target = ["-e", str(source)]
    elif way in {"wheel", "sdist"}:
        target = [str(build(source, folder / "dist")[way == "wheel"])]
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    finished = subprocess.run(
        [sys.executable, *install, "--no-build-isolation", "--ignore-installed", *target],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return Environment(python, source, home)
