"""A self-contained page about runs, and what a notebook shows of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from typing import Any

from danling.errors import MetricError
from danling.experiments.columns import column, differing_settings
from danling.experiments.reports.charts import Curve, chart
from danling.experiments.seeds import SeedGroup, over_seeds
from danling.experiments.stored import StoredRun
from danling.experiments.values import duration_text, one_line, value_text

__all__ = ["report", "run_fragment", "runs_fragment"]


_MOST_PATCH = 40_000  # characters of one patch: ten of them stay below half a megabyte
_MOST_CHARTS = 12
_MOST_ROWS = 50  # of a notebook's table
_LOG_LINES = 15

_STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #fff; --line: #d0d0d0; --soft: #f4f4f4 }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e6e6; --bg: #16181b; --line: #3a3f45; --soft: #212429 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem }
figure { margin: 0; break-inside: avoid } svg { width: 100% }
svg text { font-size: 12px; fill: currentColor }
.legend { list-style: none; padding: 0 0 0 3rem; margin: 0; font-size: 12px }
.legend li { display: inline-block; margin-right: 1rem; padding-left: 6px;
  border-left: 14px solid var(--c) }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: 12px }
details { margin: .5rem 0 } summary { cursor: pointer }
@media print { :root { --fg: #000; --bg: #fff; --soft: #fff } body { margin: 0; max-width: none } }
"""


def report(runs: Sequence[StoredRun], title: str = "Runs") -> str:
    """One HTML file about some runs, that needs no script and no other file.

    It has the scores, what differs, curves with bands over seeds, and of each run the code, the
    environment and the end of its log.
    """
    names = _settings_names(runs)
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(runs)} runs</p>",
        "<h2>Scores</h2>",
        _score_table(runs, names),
        "<h2>Curves</h2>",
        _charts(runs, names),
        "<h2>Runs</h2>",
        *(_details(run) for run in runs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{chr(10).join(body)}</body></html>\n"
    )


def runs_fragment(runs: Sequence[StoredRun]) -> str:
    """A table of runs, for a notebook."""
    shown = runs[:_MOST_ROWS]
    more = f"<p>and {len(runs) - len(shown)} more</p>" if len(runs) > len(shown) else ""
    return _score_table(shown, _settings_names(shown)) + more


def run_fragment(run: StoredRun) -> str:
    """The HTML of a run, for a notebook."""
    one = [run]
    return f"{_score_table(one, [])}{_charts(one, [])}"


def _settings_names(runs: Sequence[StoredRun]) -> list[str]:
    return differing_settings(runs)


def _score_table(runs: Sequence[StoredRun], names: Sequence[str]) -> str:
    monitors = list(dict.fromkeys(run.monitor for run in runs if run.best is not None))
    head = ["run", "name", "status", *names, *monitors, "epoch", "time", "code"]
    rows = []
    for run in runs:
        values = [column(runs, name)(run) for name in names]
        scores = [run.metric(name) for name in monitors]
        best = (run.best or {}).get("epoch")
        code = f"{(run.commit or '')[:8]}{'*' if run.dirty else ''}"
        cells = [run.id, run.name, run.status, *values, *scores, best]
        rows.append([*map(value_text, cells), duration_text(run.duration), code])
    return _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _charts(runs: Sequence[StoredRun], names: Sequence[str]) -> str:
    tags = list(dict.fromkeys(tag for run in runs for tag in run.metric_names))
    tags.sort(key=lambda tag: tag.startswith(("optim/", "perf/", "system/", "grad_norm")))
    groups = over_seeds(runs)
    figures = []
    for tag in tags[:_MOST_CHARTS]:
        curves: dict[str, Curve] = {}
        for group in groups:
            with suppress(MetricError):
                curves |= _curves(group, tag, names)
        drawn = chart(tag, curves)
        figures += [f"<figure>{drawn}</figure>"] if drawn else []
    return f'<div class="charts">{"".join(figures)}</div>'


def _curves(group: SeedGroup[Any], tag: str, names: Sequence[str]) -> dict[str, Curve]:
    first = (group.runs or group.others)[0]
    keys = [name for name in names if name != "seed"]
    label = " ".join(f"{key}={value_text(group.settings.get(key))}" for key in keys)
    label = f"{label or first.name} {(first.commit or '')[:6]}".strip()
    if len(group.runs) > 1:
        band = group.band(tag)
        return {f"{label} ({len(group.runs)} seeds)": Curve(*band)} if band.steps else {}
    found = {}
    for run in group.runs or group.others:
        history = run.history(tag)
        found[f"{label} {run.id[-8:]}"] = Curve(history.steps, history.values)
    return found


def _details(run: StoredRun) -> str:
    facts: dict[str, Any] = {
        "directory": str(run.path),
        "reason": run.reason,
        "created": run.record.get("created"),
        "tags": ", ".join(run.tags),
        "notes": " | ".join(note.text for note in run.notes),
        "commit": run.commit,
        **{key: run.environment.get(key) for key in ("host", "platform", "python")},
        **{str(k): v for k, v in dict(run.environment.get("versions") or {}).items()},
        **run.settings,
    }
    rows = [(key, value_text(value)) for key, value in facts.items() if value not in (None, "")]
    parts = [_table(("key", "value"), rows)]
    patch = run.patch
    if patch:
        cut = patch[:_MOST_PATCH]
        more = f"\n... {len(patch) - len(cut)} characters more" if len(patch) > len(cut) else ""
        parts.append(f"<h4>Uncommitted code</h4><pre>{escape(_lines(cut + more))}</pre>")
    log = run.log(_LOG_LINES)
    if log:
        parts.append(f"<h4>End of the log</h4><pre>{escape(_lines(chr(10).join(log)))}</pre>")
    summary = f"{run.id} {run.name} {run.status}"
    return f"<details><summary>{escape(one_line(summary))}</summary>{''.join(parts)}</details>"


def _lines(text: str) -> str:
    return "\n".join(one_line(line.replace("\t", "    ")) for line in text.splitlines())
