"""Charts as inline SVG whose x is in percent of the width and whose y is in pixels.

So a chart is as wide as there is room for, and its marks and letters keep their size from a phone to a projector.
Colours come from the style sheet: a series is `s0` ... `s7`, its mark a circle, a square or a diamond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinkserve.eval.report.axis import Axis
from thinkserve.eval.report.elements import Html, tag
from thinkserve.eval.report.metrics import Interval
from thinkserve.eval.report.numerals import short

COLOURS = 8
LINE = 18
"""Pixels between the marks of a row."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with its interval."""

    value: float
    interval: Interval | None
    label: str
    """What it says in words: shown when it is pointed at, and read aloud."""
    series: int = 0
    hollow: bool = False


def dots(found: Sequence[Dot | None], axis: Axis, reference: float | None) -> Html:
    """One row of dots with intervals, one below the other; None leaves its line empty."""
    height = LINE * max(len(found), 1) + 10
    marks = [
        _dot(dot, axis, 5 + LINE * number + LINE / 2) for number, dot in enumerate(found) if dot is not None
    ]
    said = "; ".join(dot.label for dot in found if dot is not None) or "no number"
    return svg(said, height, [*_grid(axis, reference, height), *marks])


def tick_row(axis: Axis, reference: float | None = None, name: str = "") -> Html:
    """The numbers under (or over) rows of dots."""
    labels = [
        tag(
            "text",
            short(tick),
            x=f"{axis.at(tick)}%",
            y=12,
            class_="tick strong" if tick == reference else "tick",
        )
        for tick in axis.ticks
    ]
    return tag(
        "svg", labels, class_="ticks", width="100%", height=16, aria_hidden="true", data_name=name or None
    )


def svg(label: str, height: float, children: list[Html], class_: str = "plot") -> Html:
    """A chart as wide as its place, with what it shows in words."""
    return tag("svg", children, class_=class_, width="100%", height=height, role="img", aria_label=label)


def _grid(axis: Axis, reference: float | None, height: float) -> list[Html]:
    lines = [
        line(axis.at(tick), 0, axis.at(tick), height, "grid") for tick in axis.ticks if tick != reference
    ]
    if reference is not None and axis.low <= reference <= axis.high:
        lines.append(line(axis.at(reference), 0, axis.at(reference), height, "reference"))
    return lines


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A line; x in percent, y in pixels."""
    return tag("line", x1=f"{x1}%", y1=f"{y1:g}", x2=f"{x2}%", y2=f"{y2:g}", class_=class_)


def _dot(dot: Dot, axis: Axis, y: float) -> Html:
    parts = [tag("title", dot.label)]
    if dot.interval is not None:
        parts.append(line(axis.at(dot.interval.low), y, axis.at(dot.interval.high), y, "whisker"))
    parts.append(mark(dot.series, f"{axis.at(dot.value)}%", y, hollow=dot.hollow))
    return tag("g", parts, class_=f"s{dot.series % COLOURS}{' hollow' if dot.hollow else ''}")


def mark(series: int, x: str, y: float, *, hollow: bool = False) -> Html:
    """The mark of a series, at a place."""
    class_ = "mark hollow" if hollow else "mark"
    shape = series % 3
    if shape == 0:
        return tag("circle", cx=x, cy=f"{y:g}", r="5", class_=class_)
    turn = "translate(-4.5 -4.5)" if shape == 1 else "rotate(45) translate(-4.5 -4.5)"
    square = tag("rect", width="9", height="9", transform=turn, class_=class_)
    # A transform cannot hold percent; a nested SVG can be moved by them.
    return tag("svg", square, x=x, y=f"{y:g}", overflow="visible")


def swatch(series: int) -> Html:
    """The mark of a series in a line of text or a table."""
    inner = mark(series, "7", 7)
    return tag("svg", inner, class_=f"swatch s{series % COLOURS}", width=14, height=14, aria_hidden="true")


def stacked(parts: Sequence[tuple[str, float]], most: float, label: str, series: int) -> Html:
    """A bar of several parts, as long as its sum against the most that any bar has."""
    start = 0.0
    rects = []
    for class_, length in parts:
        width = 100 * length / most if most else 0.0
        rects.append(
            tag("rect", x=f"{start:.2f}%", y="3", width=f"{width:.2f}%", height="14", class_=f"part {class_}")
        )
        start += width
    return svg(label, 20, rects, f"plot bar s{series % COLOURS}")


def needle(preferences: Sequence[float], label: str) -> Html:
    """How far some games lean (0.0 to 1.0 each), from the one side to the other."""
    rule = tag("line", x1="5%", x2="95%", y1="8", y2="8", class_="rail")
    middle = tag("line", x1="50%", x2="50%", y1="3", y2="13", class_="rail")
    places = [f"{5 + 90 * preference:.1f}%" for preference in preferences]
    joined = (
        tag("line", x1=places[0], x2=places[-1], y1="8", y2="8", class_="whisker")
        if len(places) > 1
        else None
    )
    marks = [tag("circle", cx=place, cy="8", r="4.5", class_="mark") for place in places]
    return tag(
        "svg", rule, middle, joined, marks, class_="needle", width=96, height=16, role="img", aria_label=label
    )
