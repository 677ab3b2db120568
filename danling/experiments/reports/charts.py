"""Curves and bands as SVG, in colours that are read on dark and on light paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from danling.experiments.values import value_text

__all__ = ["Curve", "chart"]


_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 28, 30
_MOST_POINTS = 200  # of a curve: more than the chart has room for
# the palette of Okabe and Ito (2008), without black and yellow
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


class Curve(NamedTuple):
    """A curve, with the band around it if it is one over seeds."""

    steps: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """An SVG image of some curves over the optimizer steps.

    Values that are not finite are left out.
    """
    thinned = {label: _thinned(curve) for label, curve in curves.items()}
    shown = {label: curve for label, curve in thinned.items() if curve.steps}
    numbers = [n for c in shown.values() for n in (*c.values, *c.low, *c.high)]
    steps = [step for curve in shown.values() for step in curve.steps]
    if not numbers:
        return ""
    horizontal, vertical = (min(steps), max(steps)), (min(numbers), max(numbers))
    parts = [_axes(title, horizontal, vertical)]
    for place, (label, curve) in enumerate(shown.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        dashes = ' stroke-dasharray="5 3"' if place >= len(_COLOURS) else ""
        line = _points(curve.steps, curve.values, horizontal, vertical)
        if curve.low:
            back = _points(curve.steps[::-1], curve.low[::-1], horizontal, vertical)
            edge = _points(curve.steps, curve.high, horizontal, vertical)
            parts.append(f'<polygon points="{edge} {back}" fill="{colour}" opacity=".2"/>')
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}>'
            f"<title>{escape(label)}</title></polyline>"
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>{_legend(list(shown))}"
    )


def _thinned(curve: Curve) -> Curve:
    finite = [place for place, value in enumerate(curve.values) if math.isfinite(value)]
    stride = math.ceil(len(finite) / _MOST_POINTS) or 1
    places = finite[::-stride][::-1]  # with the last
    sides = [[side[place] for place in places] if side else [] for side in curve]
    return Curve([int(step) for step in sides[0]], *sides[1:])


def _points(
    steps: Sequence[int],
    values: Sequence[float],
    horizontal: tuple[int, int],
    vertical: tuple[float, float],
) -> str:
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    wide = (horizontal[1] - horizontal[0]) or 1
    high = (vertical[1] - vertical[0]) or 1.0
    return " ".join(
        f"{_LEFT + across * (step - horizontal[0]) / wide:.1f},"
        f"{_HEIGHT - _BOTTOM - up * (value - vertical[0]) / high:.1f}"
        for step, value in zip(steps, values, strict=True)
    )


def _axes(title: str, horizontal: tuple[int, int], vertical: tuple[float, float]) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    texts = [
        (_LEFT, 16, "start", title),
        (_LEFT - 6, bottom, "end", value_text(float(vertical[0]))),
        (_LEFT - 6, _TOP + 4, "end", value_text(float(vertical[1]))),
        (_LEFT, bottom + 18, "start", str(horizontal[0])),
        (right, bottom + 18, "end", f"step {horizontal[1]}"),
    ]
    drawn = [
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, y, anchor, text in texts
    ]
    frame = f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>'
    return frame + "".join(drawn)


def _legend(labels: Sequence[str]) -> str:
    items = [
        f'<li style="--c:{_COLOURS[place % len(_COLOURS)]}">{escape(label)}</li>'
        for place, label in enumerate(labels)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'
