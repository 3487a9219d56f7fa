"""Lines over iterations, epochs or steps: small charts whose x axis is a number, with an interval at each mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from thinkserve.eval.report.axis import Axis
from thinkserve.eval.report.curve import HEIGHT, TOP
from thinkserve.eval.report.elements import Html, join, tag
from thinkserve.eval.report.metrics import Interval
from thinkserve.eval.report.numerals import short
from thinkserve.eval.report.svg import COLOURS, line, mark, svg, swatch

APART = 1.1
"""Percent of the width between marks of several lines at one place, so that their intervals do not hide each other."""
MOST_TICKS = 9
WIDE, NARROW = 9.0, 15.0
"""Percent of the width that the numbers of the y axis take, in a chart of half the page and in a smaller one."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value."""

    x: float
    y: float
    label: str
    """What it says in words."""
    interval: Interval | None = None
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together, in the order of x."""

    series: int
    points: Sequence[Point]
    marked: bool = True
    """Whether each point has a mark, or the line is all there is to see."""


def whole_axis(last: int) -> Axis:
    """An axis of whole numbers from 0; of 0 alone it is in the middle."""
    step = max(1, -(-(last + 1) // MOST_TICKS))
    ticks = tuple(float(number) for number in range(0, last + 1, step))
    return Axis(0.0, float(last), ticks) if last else Axis(-1.0, 1.0, (0.0,))


def lines(
    found: Sequence[Line],
    x: Axis,
    y: Axis,
    label: str,
    *,
    reference: float | None = None,
    margin: float = WIDE,
) -> Html:
    """Draw some lines.

    Args:
        found: the lines; later ones lie above.
        x: as `whole_axis` makes it, or any.
        y: of the values and their intervals.
        label: what is seen, in words.
        reference: a value of y that gets a line: a draw, no difference.
        margin: `WIDE` or `NARROW`.
    """

    def across(value: float) -> float:
        return round(margin + x.at(value) * (100 - margin) / 100, 2)

    def at(value: float) -> float:
        return round(TOP + HEIGHT * (1 - y.at(value) / 100), 1)

    parts = [line(margin, at(tick), 100, at(tick), "grid") for tick in y.ticks if tick != reference]
    if reference is not None and y.low <= reference <= y.high:
        parts.append(line(margin, at(reference), 100, at(reference), "reference"))
    parts += [tag("text", short(tick), x="0", y=f"{at(tick) + 4:g}", class_="tick start") for tick in y.ticks]
    parts += [
        tag("text", short(tick), x=f"{across(tick)}%", y=f"{TOP + HEIGHT + 14:g}", class_="tick")
        for tick in x.ticks
    ]
    marked = [one for one in found if one.marked]
    for one in found:
        aside = (marked.index(one) - (len(marked) - 1) / 2) * APART if one.marked else 0.0
        placed = [(round(across(point.x) + aside, 2), point) for point in one.points]
        joins = [
            line(a, at(first.y), b, at(second.y), "join" if one.marked else "join alone")
            for (a, first), (b, second) in pairwise(placed)
        ]
        marks = [_point(place, point, at, one.series) for place, point in placed] if one.marked else []
        parts.append(tag("g", joins, marks, class_=f"s{one.series % COLOURS}"))
    return svg(label, TOP + HEIGHT + 22, parts, "plot curve")


def _point(x: float, point: Point, at: Callable[[float], float], series: int) -> Html:
    whisker = None
    if point.interval is not None:
        whisker = line(x, at(point.interval.low), x, at(point.interval.high), "whisker")
    return tag(
        "g",
        tag("title", point.label),
        whisker,
        mark(series, f"{x}%", at(point.y), hollow=point.hollow),
        class_="hollow" if point.hollow else None,
    )


def figure(title: str, drawn: Html | None, below: str, *, series: int | None = None, small: str = "") -> Html:
    """A chart with its title, and what its x axis is.

    Args:
        title: what y is.
        drawn: None: there is nothing to draw.
        below: the name of the x axis.
        series: whose mark to show before the title.
        small: more about it.
    """
    caption = tag(
        "figcaption",
        None if series is None else swatch(series),
        tag("b", title),
        join(" ", tag("small", small)) if small else None,
    )
    if drawn is None:
        return tag("figure", caption, tag("p", "Nothing was measured yet.", class_="empty"))
    return tag("figure", caption, drawn, tag("p", f"{below} \u2192", class_="axis-name"))
