"""Pages for TensorBoard that need no training: layouts, bands over seeds, a run from its record."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling import hparams
from danling.config import Config
from danling.errors import RunError
from danling.event_file import EventWriter, event_files, read_events, read_scalars
from danling.history import flatten, is_better
from danling.jsonable import loads
from danling.metrics_file import read_metrics
from danling.record import RunFile, RunPaths

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["band_layout", "best_values", "close_killed", "rebuild", "split_layout", "write_band"]

_NOT_METRICS: Final = ("global_step", "epoch", "time")


def split_layout(names: Iterable[str]) -> Summary.Value:
    """Charts for the page "Custom Scalars": for each metric one with all its splits.

    Args:
        names: Of the metrics, without a split.

    Example:
        >>> split_layout(["loss"]).tag
        'custom_scalars__config__'
    """
    charts = {name: ["Multiline", [f"^[^/]+/{re.escape(name)}$"]] for name in sorted(names)}
    return _layout({"splits": charts})


def band_layout(tags: Iterable[str]) -> Summary.Value:
    """Charts of the mean over several runs, in a band from the least to the greatest.

    Args:
        tags: As `write_band` has them.

    Example:
        >>> band_layout(["val/loss"]).tag
        'custom_scalars__config__'
    """
    # not regular expressions here: the page takes the three tags literally
    charts = {
        tag: ["Margin", [f"{tag}/{part}" for part in ("mean", "min", "max")]]
        for tag in sorted(tags)
    }
    return _layout({"mean, least and greatest over the seeds": charts})


def write_band(
    directory: str | os.PathLike[str],
    runs: Sequence[str | os.PathLike[str]],
    tags: Iterable[str] | None = None,
) -> list[str]:
    """Summarise runs of one configuration: the mean of each scalar, and a band of what there was.

    The summary is a run of its own, with `val/loss/mean`, `val/loss/min` and `val/loss/max`, and a
    chart of them on the page "Custom Scalars". A step is in it when every run has a finite value at
    it, as TensorBoard draws a band only where all three have a point. What was in the directory
    before is replaced.

    Args:
        directory: Of the summary; it is made.
        runs: Directories of the runs.
        tags: Which scalars; None for all under `train/`, `val/` and `test/`, and of other splits.

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
        >>> read_scalars(folder / "seeds")["val/loss/mean"]
        [(10, 0.5)]
    """
    curves = [{tag: dict(points) for tag, points in read_scalars(run).items()} for run in runs]
    wanted = sorted(set(tags) if tags is not None else _metrics_of(curves))
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for path in event_files(target):
        path.unlink()
    shown = []
    with EventWriter(target) as writer:
        for tag in wanted:
            points = _band([curve.get(tag, {}) for curve in curves])
            for step, values in points:
                writer.add_scalars({f"{tag}/{part}": v for part, v in values.items()}, step)
            if points:
                shown.append(tag)
        if shown:
            writer.add([band_layout(shown)], step=0)
    return shown


def best_values(values: Mapping[str, float]) -> dict[str, float]:
    """What to show of a result that is the best: what was evaluated, else how the training went.

    Example:
        >>> best_values({"train/loss": 0.1, "val/loss": 0.2})
        {'best/val/loss': 0.2}
    """
    evaluated = {tag: value for tag, value in values.items() if not tag.startswith("train/")}
    return {f"best/{tag}": value for tag, value in (evaluated or values).items()}


def rebuild(run: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    r"""Make the event file of a run from its record: the metrics, the results, the configuration.

    All scalars come back, the best ones, and the row of the HParams table; images, histograms and
    the like are in no record.

    Args:
        run: The directory of the run.
        overwrite: Whether to replace the event files that are there.

    Returns:
        The new file.

    Raises:
        RunError: There are event files, and `overwrite` is not set.
        OSError: A file cannot be read or written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "metrics.jsonl").write_text('{"global_step": 50, "train/loss": 0.5}\n')
        >>> _ = rebuild(folder)
        >>> read_scalars(folder)
        {'train/loss': [(50, 0.5)]}
    """
    paths = RunPaths(run)
    old = event_files(paths.path)
    if old and not overwrite:
        raise RunError(
            f"{paths.path} has event files, such as {old[0].name}: overwrite=True replaces them"
        )
    config = Config.load(paths.runner_yaml) if paths.runner_yaml.exists() else Config()
    record = RunFile.read(paths.run_json).data if paths.run_json.exists() else {}
    values, group = hparams.of_config(config, record.get("experiment_id", ""))
    rows = list(read_metrics(paths.metrics))
    started = float(rows[0].get("time", 0.0)) if rows else 0.0
    ended = float(rows[-1].get("time", 0.0)) if rows else 0.0
    with EventWriter(paths.path) as writer:
        writer.add([hparams.session_start(values, group, started)], step=0, wall_time=started)
        for row in rows:
            # "NaN" and "-Infinity" are numbers, too
            metrics = {tag: float(row[tag]) for tag in row if tag not in _NOT_METRICS}
            writer.add_scalars(metrics, row["global_step"], row.get("time"))
        _add_best(writer, _results(paths.results), config)
        step = rows[-1]["global_step"] if rows else 0
        writer.add(hparams.session_end(record.get("status"), ended), step, ended)
    for path in old:
        path.unlink()
    return writer.path


def close_killed(run: str | os.PathLike[str], status: str = "failed") -> bool:
    """Tell TensorBoard that a run has ended which could not tell it itself, as it was killed.

    Args:
        run: The directory of a run that no process works in.
        status: How it ended.

    Returns:
        Whether there was something to tell: its session was open.

    Raises:
        OSError: A file cannot be read or written.
    """
    directory = Path(run)
    tags: set[str] = set()
    step, moment = 0, 0.0
    for path in event_files(directory):
        for event in read_events(path):
            tags |= {value.tag for value in event.summary.value}
            step, moment = max(step, event.step), max(moment, event.wall_time)
    if {tag for tag in tags if tag.startswith(hparams.TAG_PREFIX)} != {hparams.START_TAG}:
        return False
    with EventWriter(directory, start_step=step + 1) as writer:
        writer.add(hparams.session_end(status, moment), step)
    return True


def _layout(categories: Mapping[str, Mapping[str, Sequence[Any]]]) -> Summary.Value:
    from torch.utils.tensorboard import summary

    encode: Any = summary.custom_scalars
    value: Summary.Value = encode(categories).value[0]
    return value


def _metrics_of(curves: Sequence[Mapping[str, Any]]) -> set[str]:
    """Tags of the form `split/name` that are in every run."""
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    other = ("best/", "optim/", "perf/", "system/")
    return {tag for tag in common if tag.count("/") == 1 and not tag.startswith(other)}


def _band(curves: Sequence[Mapping[int, float]]) -> list[tuple[int, dict[str, float]]]:
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    points = []
    for step in sorted(steps):
        values = [curve[step] for curve in curves]
        if all(map(math.isfinite, values)):
            mean = math.fsum(values) / len(values)
            points.append((step, {"mean": mean, "min": min(values), "max": max(values)}))
    return points


def _results(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    results: list[dict[str, Any]] = loads(path.read_text(encoding="utf-8"), str(path))
    return results


def _add_best(writer: EventWriter, results: list[dict[str, Any]], config: Config) -> None:
    has_val = any("val" in result for result in results)
    monitor = config.monitor or ("val/loss" if has_val else "train/loss")
    best: float | None = None
    for result in results:
        values = {tag: float(value) for tag, value in flatten(result).items()}
        score = values.get(monitor)
        if is_better(score, best, config.monitor_mode):
            best = score
            writer.add_scalars(best_values(values), result["global_step"])
