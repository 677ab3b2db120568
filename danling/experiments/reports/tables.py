"""Rows as CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from danling.errors import ConfigError, MetricError, did_you_mean
from danling.experiments.collection import Runs
from danling.experiments.columns import differing_settings
from danling.experiments.seeds import SeedGroup, Summary
from danling.experiments.values import one_line, value_text
from danling.files.json import dumps

__all__ = ["FORMATS", "formatted", "history_rows", "seed_rows", "seed_table"]


FORMATS = ("csv", "json", "jsonl", "markdown", "latex")
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}

Row = Mapping[str, Any]


def formatted(rows: Sequence[Row], form: str) -> str:
    r"""Rows as text.

    Args:
        rows: Mappings from column to value.
        form: One of `FORMATS`.

    Raises:
        ConfigError: There is no such format.

    Example:
        >>> print(formatted([{"optim.lr": 0.1, "seed": 0}], "markdown"), end="")
        | optim.lr | seed |
        | --- | --- |
        | 0.1 | 0 |
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if form == "csv":
        return _csv(names, rows)
    if form == "json":
        return dumps(rows, indent=2) + "\n"
    if form == "jsonl":
        return "".join(f"{dumps(row)}\n" for row in rows)
    if form in ("markdown", "latex"):
        cells = [[_text(row.get(name)) for name in names] for row in rows]
        return (_markdown if form == "markdown" else _latex)(names, cells)
    raise ConfigError(f"there is no format {form!r}: {did_you_mean(form, FORMATS)}")


def history_rows(runs: Runs, tags: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The points of all curves, in long form.

    Raises:
        MetricError: No run has a curve of one of the tags.
    """
    rows = []
    known = list(dict.fromkeys(name for run in runs for name in run.metric_names))
    for tag in tags or known:
        for identifier, history in runs.history(tag).items():
            points = zip(history.steps, history.values, history.times, strict=True)
            rows += [
                {"id": identifier, "tag": tag, "global_step": step, "value": value, "time": time}
                for step, value, time in points
            ]
    return rows


def seed_rows(runs: Runs, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per configuration: what differs, and the summaries of the metrics over seeds.

    Raises:
        MetricError: No metric is given, and the runs have different monitors.
        ConfigError: No run has one of the metrics.
    """
    groups = runs.over_seeds()
    names = list(metrics) or [runs.score_of()[0]]
    keys = [key for key in differing_settings(list(runs)) if key != "seed"]
    if len({run.experiment_id for run in runs}) > 1:
        keys.append("commit")
    return [_seed_row(group, keys, names) for group in groups]


def _seed_row(group: SeedGroup[Any], keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    first = (group.runs or group.others)[0]
    row = {key: group.settings.get(key) for key in keys if key != "commit"}
    if "commit" in keys:
        row["commit"] = f"{(first.commit or first.experiment_id)[:8]}{'*' if first.dirty else ''}"
    summaries = {name: group.summary(name) if group.runs else None for name in names}
    return {**row, **summaries, "n": len(group.runs), "others": len(group.others)}


def seed_table(runs: Runs, form: str, metrics: Sequence[str] = ()) -> str:
    """The table over seeds for a paper, with the best mean of each metric in bold.

    Raises:
        ConfigError: The format is neither Markdown nor LaTeX.
        MetricError: The errors of `seed_rows`.
    """
    if form not in ("markdown", "latex"):
        return formatted([_numbers(row) for row in seed_rows(runs, metrics)], form)
    rows = seed_rows(runs, metrics)
    names = [name for name in (rows[0] if rows else {}) if name not in ("n", "others")]
    bold = {name: _best_row(rows, name, runs) for name in names}
    cells = [
        [_bold(_text(row[name]), form, bold[name] == place) for name in names]
        for place, row in enumerate(rows)
    ]
    return (_markdown if form == "markdown" else _latex)(names, cells, escaped=True)


def _best_row(rows: Sequence[Row], name: str, runs: Runs) -> int | None:
    means = {
        place: row[name].mean for place, row in enumerate(rows) if isinstance(row[name], Summary)
    }
    if not means:
        return None
    try:
        mode = runs.score_of(name)[1]
    except MetricError:
        return None
    return (min if mode == "min" else max)(means, key=lambda place: means[place])


def _bold(text: str, form: str, is_best: bool) -> str:
    text = _latex_text(text) if form == "latex" else _markdown_text(text)
    if not is_best or not text:
        return text
    return rf"\textbf{{{text}}}" if form == "latex" else f"**{text}**"


def _numbers(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Summary):
            flat |= {f"{name}.mean": value.mean, f"{name}.std": value.std}
        else:
            flat[name] = value
    return flat


def _csv(names: Sequence[str], rows: Iterable[Row]) -> str:
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    return output.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return one_line(value) if isinstance(value, str) else dumps(value)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Summary) else value_text(value)


def _markdown_text(text: str) -> str:
    return text.replace("|", r"\|")


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _markdown(names: Sequence[str], cells: Sequence[Sequence[str]], escaped: bool = False) -> str:
    shown = cells if escaped else [[_markdown_text(cell) for cell in row] for row in cells]
    head = [_markdown_text(name) for name in names]
    rows = [head, ["---"] * len(names), *shown]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _latex(names: Sequence[str], cells: Sequence[Sequence[str]], escaped: bool = False) -> str:
    shown = cells if escaped else [[_latex_text(cell) for cell in row] for row in cells]
    head = " & ".join(_latex_text(name) for name in names)
    body = "".join(f"    {' & '.join(row)} \\\\\n" for row in shown)
    return (
        f"\\begin{{tabular}}{{{'l' * len(names)}}}\n    \\toprule\n    {head} \\\\\n"
        f"    \\midrule\n{body}    \\bottomrule\n\\end{{tabular}}\n"
    )
