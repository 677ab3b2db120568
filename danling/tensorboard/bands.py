"""The band over the seeds of a configuration: the mean, the least and the greatest of its runs.

A band is a directory beside those of the runs. TensorBoard draws it on the page "Custom Scalars",
as a line with a shade.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, Final

from danling.config.config import Config
from danling.config.naming import pairs_of
from danling.errors import ConfigError, RunError
from danling.files.atomic import write_bytes
from danling.identity.ids import run_name
from danling.run.directory import RunPaths
from danling.tensorboard import hparams
from danling.tensorboard.event_file import EventWriter, event_files, next_event_file, read_scalars
from danling.tensorboard.pages import layout, shown_tag

__all__ = ["refresh_band", "write_band"]


_PARTS: Final = ("mean", "min", "max")
_TRIES: Final = 3
_MOST_STEPS: Final = 1000  # TensorBoard shows no more points of a tag
_MOST_BYTES: Final = 1 << 28  # which are read in about ten seconds
_RUN_NAME: Final = re.compile(r".+-([0-9a-f]{8})-[0-9a-f]{8}-[0-9a-f]{8}")


def refresh_band(run: str | os.PathLike[str], experiment_name: str) -> Path | None:
    """Bring the band of a run and its siblings up to date, after the run has ended.

    Siblings are runs beside it of the same code and configuration but for the seed. The band is
    made of those that have finished, and of several with one seed of the newest. Where there is one
    seed only, and after a failure, nothing is written. All that is needed is in the event files:
    siblings that end at the same moment find each other.

    Args:
        run: The directory of the run, whose event file is closed.
        experiment_name: The start of the name of the band.

    Returns:
        The directory of the band, whose name ends with the start of the row of the HParams table:
        `{experiment_name}-seeds-{digest}`, or `{experiment_name}-lr=0.01-seeds-{digest}` where the
        run was named after its command line. None where there is no band.

    Raises:
        OSError: A file cannot be read or written.
        RunError: There is so much to read that the end of a run is not the time for it.
        ConfigError: `experiment_name` cannot be part of a folder's name.
    """
    directory = Path(run)
    name = _RUN_NAME.fullmatch(directory.name)
    if name is None:
        return None
    of_same_code = f"*-{name[1]}-????????-????????"
    group = hparams.group_of(directory)
    candidates = directory.parent.glob(of_same_code)
    siblings = [path for path in candidates if hparams.group_of(path) == group]
    if group is None or len(siblings) < 2 or not hparams.has_succeeded(directory):
        return None
    size = sum(map(_size, siblings))
    if size > _MOST_BYTES:
        raise RunError(
            f"{len(siblings)} runs have {size >> 20} MiB of events, too much to read at the end of"
            " each: danling.tensorboard.bands.write_band(directory, runs) writes their band"
        )
    target = _target(directory, experiment_name, group)
    for _ in range(_TRIES):
        runs = _seeds(siblings)
        if len(runs) < 2:
            return None
        write_band(target, runs)
        if _seeds(siblings) == runs:
            break  # else one has ended since, and another process may have written less
    return target


def write_band(
    directory: str | os.PathLike[str],
    runs: Sequence[str | os.PathLike[str]],
    tags: Iterable[str] | None = None,
) -> list[str]:
    """Write the mean, the least and the greatest of each scalar over runs.

    The band is a run of its own, with `~seeds/val/loss/mean`, `.../min` and `.../max`, and a chart
    of them on the page "Custom Scalars". It has the steps at which every run has a finite value, as
    TensorBoard draws a band only where all three have a point. Where the smallest run has more than
    1000 of them, which is as many as TensorBoard shows, the band has every second or third. What
    was in the directory before is replaced in one step; a server that is running shows the new one.

    Args:
        directory: The directory of the band; it is made.
        runs: The directories of the runs.
        tags: The tags of the scalars; None for all metrics of all splits.

    Returns:
        The tags that have at least one step in common.

    Raises:
        OSError: A file cannot be read or written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for seed in range(2):
        ...     (folder / str(seed)).mkdir()
        ...     with EventWriter(folder / str(seed)) as writer:
        ...         writer.add_scalars({"val/loss": seed}, step=10)
        >>> write_band(folder / "seeds", [folder / "0", folder / "1"])
        ['val/loss']
        >>> read_scalars(folder / "seeds")["~seeds/val/loss/mean"]
        [(10, 0.5)]
    """
    wanted = _steps(min(runs, key=_size), tags) if runs else {}
    steps = set[int]().union(*wanted.values())
    curves = [
        {tag: dict(points) for tag, points in read_scalars(run, steps).items()} for run in runs
    ]
    bands = {tag: _band([curve.get(tag, {}) for curve in curves], wanted[tag]) for tag in wanted}
    shown = sorted(tag for tag in bands if bands[tag])
    target = Path(directory)
    old = event_files(target)
    if shown:
        target.mkdir(parents=True, exist_ok=True)
        write_bytes(next_event_file(target), _events(shown, bands))
    for path in old:  # emptied and not removed: the server in Python would wait for it for ever
        if path.stat().st_size:
            write_bytes(path, b"")
    return shown


def _events(tags: list[str], bands: Mapping[str, Mapping[int, Mapping[str, float]]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, EventWriter(folder) as writer:
        # the metrics that were evaluated, as in the layout of each run
        names = {tag.partition("/")[2] for tag in tags if not tag.startswith("train/")}
        charts = {tag: [shown_tag(f"seeds/{tag}/{part}") for part in _PARTS] for tag in tags}
        writer.add([layout(names, charts)], 0)
        for step in sorted({step for tag in tags for step in bands[tag]}):
            here = {tag: bands[tag][step] for tag in tags if step in bands[tag]}
            values = {
                shown_tag(f"seeds/{tag}/{part}"): v for tag in here for part, v in here[tag].items()
            }
            writer.add_scalars(values, step)
        writer.close()
        return writer.path.read_bytes()


def _seeds(siblings: Iterable[Path]) -> list[Path]:
    """The runs that have finished; of several with one seed the newest."""
    newest: dict[Any, Path] = {}
    for path in sorted(siblings, key=lambda path: event_files(path)[-1].name):
        if hparams.has_succeeded(path):
            seed = _config_of(path).get("seed")
            newest[path if seed is None else seed] = path
    return sorted(newest.values())


def _target(run: Path, experiment_name: str, group: str) -> Path:
    """The directory of the band: the one that is there, or the one that the run would begin."""
    end = f"seeds-{group.partition('-')[0]}"
    known = sorted(run.parent.glob(f"{escape(experiment_name)}-*{end}"))
    pairs = pairs_of(_config_of(run).run_name)
    words = [f"{key}={value}" for key, value in pairs.items() if key != "seed"]
    name = run_name(experiment_name, f"{' '.join(words)}-{end}" if words else end)
    return known[0] if known else run.parent / name


def _config_of(run: Path) -> Config:
    with suppress(ConfigError, OSError):
        return Config.load(RunPaths(run).runner_yaml)
    return Config()


def _size(run: str | os.PathLike[str]) -> int:
    return sum(path.stat().st_size for path in event_files(run))


def _steps(run: str | os.PathLike[str], tags: Iterable[str] | None) -> dict[str, set[int]]:
    """The steps of each tag that are shown: all, or every second or third, with the last one."""
    asked_for = None if tags is None else set(tags)
    chosen = {}
    for tag, points in read_scalars(run).items():
        if tag in asked_for if asked_for is not None else _is_metric(tag):
            finite = [step for step, value in points if math.isfinite(value)]
            chosen[tag] = set(finite[:: -math.ceil(len(finite) / _MOST_STEPS) or -1])
    return chosen


def _is_metric(tag: str) -> bool:
    """Whether a tag is that of a split's metric, as `val/loss`."""
    return tag.count("/") == 1 and not tag.startswith("~") and shown_tag(tag) == tag


def _band(curves: Sequence[Mapping[int, float]], steps: set[int]) -> dict[int, dict[str, float]]:
    points = {}
    for step in sorted(steps.intersection(*curves)):
        values = [curve[step] for curve in curves]
        if all(map(math.isfinite, values)):
            mean = math.fsum(values) / len(values)
            points[step] = {"mean": mean, "min": min(values), "max": max(values)}
    return points
