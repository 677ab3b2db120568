"""`verify` and `doctor`: whether runs, and the machine, are in order."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danling.cli.choosing import add_choice, chosen
from danling.cli.output import Output
from danling.errors import DanLingError
from danling.experiments.reading import find_root
from danling.experiments.values import one_line, size_text

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "verify": "  danling verify @best\n  danling verify @all --json",
    "doctor": "  danling doctor                 a block to paste into an issue",
}

_PACKAGES = (
    *("danling", "torch", "accelerate", "numpy", "tensorboard", "gitpython", "pyyaml", "tqdm"),
    *("deepspeed", "transformers", "plotext"),
)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`."""
    add_choice(parser, required=True)


def run_verify(options: Any, output: Output) -> int:
    """Check ids, files, checkpoints and code of runs; 1 if something is wrong."""
    from danling.experiments.repeat.verification import verify

    found = chosen(options, output)
    checked = {run: verify(run) for run in found}
    if output.json:
        rows = [
            {
                "id": run.id,
                "ok": all(finding.ok for finding in findings),
                "findings": [finding.__dict__ for finding in findings],
            }
            for run, findings in checked.items()
        ]
        output.data(rows)
    else:
        for run, findings in checked.items():
            output.line(output.paint(f"{run.id}  {one_line(run.name)}", "title"))
            for finding in findings:
                mark = output.paint("ok " if finding.ok else "BAD", "good" if finding.ok else "bad")
                output.line(f"  {mark} {finding.subject:<10} {one_line(finding.text)}")
    return int(not all(finding.ok for findings in checked.values() for finding in findings))


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """`doctor` has no options of its own."""


def run_doctor(options: Any, output: Output) -> int:
    """Versions, devices, configuration of Accelerate, git, disk."""
    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "accelerate": _accelerate(),
        "git": _git(),
        "disk": _disk(options.root),
    }
    if output.json:
        output.data(sections)
        return 0
    for title, values in sections.items():
        output.line(output.paint(title, "title"))
        for key, value in values.items():
            output.line(f"  {key:<16} {one_line(str(value))}")
    return 0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"cannot be imported: {error}"}
    found = {"cpus": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    found["cuda"] = str(torch.version.cuda) if torch.cuda.is_available() else "no"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"gpu {index}"] = torch.cuda.get_device_name(index)
    found["mps"] = "yes" if torch.backends.mps.is_available() else "no"
    return found


def _accelerate() -> dict[str, str]:
    """The configuration file, and the variables, which win over it."""
    try:
        from accelerate.commands.config.config_args import default_config_file
    except ImportError as error:
        return {"accelerate": f"cannot be imported: {error}"}
    path = Path(default_config_file)
    found = {"config file": str(path) if os.path.isfile(path) else f"none ({path})"}
    found["order"] = "config keys, then ACCELERATE_* variables, then accelerate launch's file"
    variables = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
    return found | {name: os.environ[name] for name in variables}


def _git() -> dict[str, str]:
    from danling.identity.code import read_code

    code = read_code(Path.cwd())
    if code.source != "git":
        return {"repository": f"none: {code.note}"}
    return {
        "commit": str(code.commit),
        "branch": str(code.branch),
        "state": "uncommitted changes" if code.dirty else "clean",
    }


def _disk(root: str | None) -> dict[str, str]:
    try:
        folder = find_root(root)
    except DanLingError as error:
        return {"runs": str(error)}
    usage = shutil.disk_usage(folder)
    found = {"runs": str(folder.resolve()), "free": size_text(usage.free)}
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            found |= _abilities(Path(scratch))
    except OSError as error:
        found["writable"] = f"no: {error.strerror}"
    return found


def _abilities(folder: Path) -> dict[str, str]:
    """The abilities of a file system that checkpoints and locks rely on."""
    from danling.files import filesystem
    from danling.run.lock import DirectoryLock

    def locks() -> None:
        with DirectoryLock(folder):
            pass

    (folder / "file").write_text("")
    tries: dict[str, Callable[[], object]] = {
        "locks": locks,
        "hard links": lambda: filesystem.link(folder / "file", folder / "link"),
        "symbolic links": lambda: (folder / "symbolic").symlink_to("file"),
        "syncs": lambda: filesystem.fsync_directory(folder),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "yes"
        except OSError as error:
            found[name] = f"no: {error.strerror}"
    return found
