"""`plot`: curves in the terminal."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from danling.cli.choosing import add_choice, chosen
from danling.cli.output import Output
from danling.errors import MetricError
from danling.experiments.collection import Runs
from danling.experiments.columns import differing_settings
from danling.experiments.reports.charts import Curve
from danling.experiments.run import Run
from danling.experiments.values import one_line, value_text

__all__ = ["EXAMPLES"]


EXAMPLES = {
    "plot": """\
  danling plot @1
  danling plot @1 @best -m val.loss
  danling plot -F 'optim.lr == 1e-3' --seeds     one curve per configuration, with its band
  danling plot @running --watch"""
}

_MOST_CURVES = 8
_COLUMNS, _ROWS = 76, 18


def add_plot(parser: argparse.ArgumentParser) -> None:
    """The options of `plot`."""
    add_choice(parser)
    parser.add_argument("-m", "--metric", metavar="METRIC", help="the curve (the monitor)")
    parser.add_argument("--seeds", action="store_true", help="means over seeds, with their band")
    parser.add_argument("--log", action="store_true", help="a logarithmic axis")
    parser.add_argument("--watch", action="store_true", help="draw anew every two seconds")


def run_plot(options: Any, output: Output) -> int:
    """Draw curves in the terminal."""
    while True:
        found = chosen(options, output)
        if not len(found):
            output.message("no run is selected; danling ls lists them")
            return 1
        tag = options.metric or found[0].monitor
        curves = _bands(found, tag) if options.seeds else _curves(found, tag)
        if not curves:
            raise MetricError(f"no run has a curve {tag!r}: {_known(found)}")
        if output.json:
            output.data({"tag": tag, "curves": {k: c._asdict() for k, c in curves.items()}})
        else:
            _draw(tag, curves, output, log=options.log, clears=options.watch)
        if not options.watch or not any(run.is_running for run in found):
            return 0
        time.sleep(2)


def _label(run: Run, names: list[str]) -> str:
    settings = " ".join(f"{name}={value_text(run.settings.get(name))}" for name in names)
    return f"{run.id[-8:]} {settings}".strip()


def _curves(found: Runs, tag: str) -> dict[str, Curve]:
    names = differing_settings(list(found))
    curves: dict[str, Curve] = {}
    for run in found:
        with suppress(MetricError):
            history = run.history(tag)
            curves[_label(run, names)] = Curve(history.steps, history.values)
        if len(curves) == _MOST_CURVES:
            break
    return curves


def _bands(found: Runs, tag: str) -> dict[str, Curve]:
    names = [name for name in differing_settings(list(found)) if name != "seed"]
    curves: dict[str, Curve] = {}
    for group in found.over_seeds()[:_MOST_CURVES]:
        with suppress(MetricError):
            if group.runs:
                curves[_label(group.runs[0], names)] = Curve(*group.band(tag))
    return curves


def _known(found: Runs) -> str:
    names = dict.fromkeys(name for run in found for name in run.metric_names)
    return f"there are {', '.join(list(names)[:8])}" if names else "nothing is logged yet"


def _draw(
    tag: str, curves: Mapping[str, Curve], output: Output, *, log: bool, clears: bool
) -> None:
    try:
        import plotext
    except ImportError as error:
        raise ImportError("plot needs plotext: pip install 'danling[cli]'") from error
    plotext.clear_figure()
    plotext.plotsize(min(output.width or _COLUMNS, 160), _ROWS)
    plotext.title(one_line(tag))
    plotext.xlabel("step")
    if log:
        plotext.yscale("log")
    markers = "braille"
    for label, curve in curves.items():
        for side in (curve.low, curve.high):
            if side:
                plotext.plot(*_finite(curve.steps, side), marker="dot", color="gray")
        plotext.plot(*_finite(curve.steps, curve.values), marker=markers, label=one_line(label))
    drawn = plotext.build()
    if clears and output.is_terminal:
        output.text("\x1b[H\x1b[2J")
    output.line(drawn if output.colours else plotext.uncolorize(drawn))


def _finite(steps: Any, values: Any) -> tuple[list[int], list[float]]:
    pairs = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
