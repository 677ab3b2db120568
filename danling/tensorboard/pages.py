"""Pages for TensorBoard that need no training: the layout of charts, a run from its record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling.config.config import Config
from danling.errors import RunError
from danling.files.json import loads
from danling.metrics.history import flatten, is_better
from danling.run.directory import RunPaths
from danling.run.lock import in_use, is_locked
from danling.run.metrics_file import read_metrics
from danling.run.record import RunFile
from danling.tensorboard import hparams
from danling.tensorboard.event_file import EventWriter, event_files, read_events

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["best_values", "close_killed", "layout", "rebuild", "shown_tag"]


_LAST: Final = (
    *("best", "epoch", "grad_norm", "gradients", "optim", "perf", "seeds", "system", "weights"),
)
"""Groups of tags that are not the metrics of a split."""

_NOT_METRICS: Final = ("global_step", "epoch", "time")


def shown_tag(tag: str) -> str:
    """The tag under which TensorBoard shows a value.

    TensorBoard sorts the groups of tags by name and opens the first two. `train` and `val` are to
    be these: other groups of the library begin with `~`, which sorts after all letters.

    Example:
        >>> shown_tag("val/loss"), shown_tag("optim/lr/0")
        ('val/loss', '~optim/lr/0')
    """
    return f"~{tag}" if tag.partition("/")[0] in _LAST else tag


def layout(names: Iterable[str], bands: Mapping[str, Sequence[str]] | None = None) -> Summary.Value:
    """Charts for the page "Custom Scalars": each metric with all its splits, and bands.

    TensorBoard merges the layouts of all runs, but of a category that only a later run has it loses
    what still others add. So a category of bands is named after what is in it, and a run that has
    one has the splits, too.

    Args:
        names: The names of the metrics, without a split.
        bands: The three tags by title: of the value and of its lower and upper end.

    Example:
        >>> layout(["loss"]).tag
        'custom_scalars__config__'
    """
    from torch.utils.tensorboard import summary

    splits = {name: ["Multiline", [f"^[^/]+/{re.escape(name)}$"]] for name in sorted(names)}
    categories: dict[str, dict[str, list[Any]]] = {"splits": splits}
    if bands:
        # no regular expressions here: the page takes the three tags literally
        charts = {title: ["Margin", list(tags)] for title, tags in bands.items()}
        categories[f"mean, least and greatest over the seeds: {', '.join(bands)}"] = charts
    encode: Any = summary.custom_scalars
    value: Summary.Value = encode(categories).value[0]
    return value


def best_values(values: Mapping[str, float]) -> dict[str, float]:
    """The values to show of the best result, by tag: of the evaluation, else of the training.

    Example:
        >>> best_values({"train/loss": 0.1, "val/loss": 0.2})
        {'~best/val/loss': 0.2}
    """
    evaluated = {tag: value for tag, value in values.items() if not tag.startswith("train/")}
    return {shown_tag(f"best/{tag}"): value for tag, value in (evaluated or values).items()}


def rebuild(run: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    r"""Make the event file of a run anew from its metrics, its results and its configuration.

    All scalars come back, the best ones, and the row of the HParams table. Images, histograms and
    the like do not: they are in no other file.

    Args:
        run: The directory of the run.
        overwrite: Whether to replace the event files that are there.

    Returns:
        The new file.

    Raises:
        RunError: There are event files, and `overwrite` is not set; or a process works in the run.
        OSError: A file cannot be read or written.

    Example:
        >>> from danling.tensorboard.event_file import read_scalars
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
    if is_locked(paths.path):
        raise RunError(f"{paths.path} is {in_use(paths.path)}, and would lose what is written now")
    config = Config.load(paths.runner_yaml) if paths.runner_yaml.exists() else Config()
    record = RunFile.read(paths.run_json).data if paths.run_json.exists() else {}
    values, group = hparams.of_config(config, record.get("experiment_id", ""))
    rows = list(read_metrics(paths.metrics))
    started = float(rows[0].get("time", 0.0)) if rows else 0.0
    ended = float(rows[-1].get("time", 0.0)) if rows else 0.0
    with EventWriter(paths.path) as writer:
        shown_as = group if record.get("status") in hparams.SUCCESSFUL else record.get("id", group)
        writer.add([hparams.session_start(values, shown_as, started)], step=0, wall_time=started)
        for row in rows:
            # "NaN" and "-Infinity" are numbers, too
            metrics = {shown_tag(tag): float(row[tag]) for tag in row if tag not in _NOT_METRICS}
            writer.add_scalars(metrics, row["global_step"], row.get("time"))
        _add_best(writer, _results(paths.results), config)
        step = rows[-1]["global_step"] if rows else 0
        writer.add(hparams.session_end(record.get("status"), ended), step, ended)
    for path in old:
        path.unlink()
    return writer.path


def close_killed(run: str | os.PathLike[str], status: str = "failed") -> bool:
    """Tell TensorBoard that a run has ended that was killed, and could not tell it itself.

    Args:
        run: The directory of a run that no process works in.
        status: The status of the run, which tells success from failure.

    Returns:
        Whether the session of the run was open, and is closed now.

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
