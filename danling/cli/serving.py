"""`tensorboard`: the stock server on a folder of links with readable names."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from danling.cli.choosing import add_choice, chosen
from danling.cli.output import Output
from danling.experiments.collection import Runs
from danling.experiments.columns import differing_settings
from danling.experiments.run import Run
from danling.experiments.seeds import SeedGroup
from danling.experiments.values import value_text
from danling.files.json import dumps

__all__ = ["EXAMPLES", "labels", "link", "write_bands"]


EXAMPLES = {
    "tensorboard": """\
  danling tensorboard
  danling tensorboard -F 'optim.lr == 1e-3' --port 6007"""
}


def add_tensorboard(parser: argparse.ArgumentParser) -> None:
    """The options of `tensorboard`."""
    add_choice(parser)
    parser.add_argument("--port", type=int, default=6006)
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS", help="look for new runs (10)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="(127.0.0.1)")


def run_tensorboard(options: Any, output: Output) -> int:
    """Start TensorBoard on some runs, and add those that come."""
    found = _with_events(chosen(options, output))
    if not len(found):
        output.message("no run has events: add the TensorBoard() callback to the runner")
        return 1
    if output.json:
        output.data({label: str(run.path) for label, run in labels(found).items()})
        return 0
    with tempfile.TemporaryDirectory(prefix="danling-tensorboard-") as folder:
        return _serve(Path(folder), found, options, output)


def _serve(folder: Path, found: Runs, options: Any, output: Output) -> int:
    bands: dict[Path, list[Path]] = {}
    link(folder, found)
    write_bands(folder, found, bands)
    every = str(max(round(options.every), 1))
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    address = ["--host", options.host, "--port", str(options.port), "--reload_interval", every]
    if "SSH_CONNECTION" in os.environ:
        output.message(f"on your own machine: ssh -L {options.port}:localhost:{options.port} HOST")
    server = subprocess.Popen([*command, *address])
    try:
        while True:
            try:
                return server.wait(timeout=options.every)
            except subprocess.TimeoutExpired:
                found = _with_events(chosen(options, Output(json=True)))
                link(folder, found)
                write_bands(folder, found, bands)
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()


def _with_events(found: Runs) -> Runs:
    return Runs(run for run in found if next(run.path.glob("events.out.tfevents.*"), None))


def labels(found: Runs) -> dict[str, Run]:
    """A name for each run, of what tells it from the others."""
    names = differing_settings(list(found))
    result: dict[str, Run] = {}
    for run in found:
        values = [f"{name}={value_text(run.settings.get(name))}" for name in names]
        label = " ".join([run.name, *values]).replace("/", "_")[:200]
        result[label if label not in result else f"{label} {run.uuid[:8]}"] = run
    return result


def link(folder: Path, found: Runs) -> None:
    """Make the links in a folder those of some runs."""
    wanted = {label: run.path.resolve() for label, run in labels(found).items()}
    for entry in [entry for entry in folder.iterdir() if entry.is_symlink()]:
        if wanted.get(entry.name) != Path(os.readlink(entry)):
            entry.unlink()
    for label, path in wanted.items():
        if not os.path.lexists(folder / label):
            (folder / label).symlink_to(path, target_is_directory=True)


def write_bands(folder: Path, found: Runs, written: dict[Path, list[Path]]) -> None:
    """Write the bands over seeds, each as a run of its own, where their runs are others now.

    Args:
        folder: The folder to write into.
        found: The runs.
        written: The runs of each band that is there, which is brought up to date.
    """
    from danling.tensorboard.bands import write_band

    wanted = {}
    for group in found.over_seeds():
        if len(group.runs) > 1:
            name = f"seeds {group.runs[0].name} {_digest(group)}"
            wanted[folder / name] = sorted(run.path for run in group.runs)
    for target in written.keys() - wanted.keys():
        shutil.rmtree(target, ignore_errors=True)
        del written[target]
    for target, paths in wanted.items():
        if written.get(target) != paths:
            write_band(target, paths)
            written[target] = paths


def _digest(group: SeedGroup[Run]) -> str:
    """A short name of what the runs have in common: code and configuration."""
    text = dumps([group.runs[0].experiment_id, group.settings])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
