from __future__ import annotations

import math
from xml.etree import ElementTree

from danling.experiments.reports.charts import Curve, chart


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text[: text.index("</svg>") + 6])


def test_a_band_is_behind_its_line_and_the_labels_are_escaped():
    curve = Curve([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 0.3, 0.2], [0.6, 0.5, 0.4])

    drawn = chart("val/<loss>", {"a & b": curve})

    image = svg(drawn)
    assert [element.tag for element in image if element.tag[:4] == "poly"] == [
        "polygon",
        "polyline",
    ]
    assert image.attrib["aria-label"] == "val/<loss>"
    assert "<li style=" in drawn
    assert "a &amp; b" in drawn


def test_values_that_are_not_finite_are_left_out():
    drawn = chart("loss", {"a": Curve([1, 2, 3], [0.5, math.nan, 0.3])})

    (line,) = [element for element in svg(drawn) if element.tag == "polyline"]
    assert len(line.attrib["points"].split()) == 2
    assert "nan" not in drawn
    assert chart("loss", {"a": Curve([1], [math.inf])}) == ""
    assert chart("loss", {}) == ""


def test_a_long_curve_is_thinned_and_keeps_its_end():
    steps = list(range(100_000))

    drawn = chart("loss", {"a": Curve(steps, [float(step) for step in steps])})

    (line,) = [element for element in svg(drawn) if element.tag == "polyline"]
    points = line.attrib["points"].split()
    assert len(points) <= 200
    assert points[-1] == "548.0,28.0"
    assert len(drawn) < 10_000
