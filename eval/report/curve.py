"""A length against the preference of the judge: the means of bins with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from thinkserve.eval.report.axis import Axis
from thinkserve.eval.report.binning import Bin
from thinkserve.eval.report.elements import Html, tag
from thinkserve.eval.report.numerals import short
from thinkserve.eval.report.svg import COLOURS, line, mark, svg

TOP, HEIGHT = 8, 168
"""Pixels above the plot, and of the plot."""
MARGIN_LEFT = 9.0
"""Percent of the width that the numbers of the y axis take."""
DRAW = 50.0


def curve(bins: Sequence[Bin], x: Axis, y: Axis, series: int, label: str, *, zero: bool = False) -> Html:
    """Means of bins with their intervals over a length, y going up.

    Args:
        bins: at least two.
        x: of the length.
        y: of the preference, in percent.
        series: which colour and mark.
        label: what is seen, in words.
        zero: whether to draw a line where the length is 0.
    """

    def at(value: float) -> float:
        return round(TOP + HEIGHT * (1 - y.at(value) / 100), 1)

    parts = [line(MARGIN_LEFT, at(tick), 100, at(tick), "grid") for tick in y.ticks if tick != DRAW]
    if y.low <= DRAW <= y.high:
        parts.append(line(MARGIN_LEFT, at(DRAW), 100, at(DRAW), "reference"))
    parts += [tag("text", short(tick), x="0", y=f"{at(tick) + 4:g}", class_="tick start") for tick in y.ticks]
    if zero and x.low < 0 < x.high:
        parts.append(line(_inside(x, 0), TOP, _inside(x, 0), TOP + HEIGHT, "reference"))
    parts += [
        tag("text", short(tick), x=f"{_inside(x, tick)}%", y=f"{TOP + HEIGHT + 14:g}", class_="tick")
        for tick in x.ticks
    ]
    joined = [
        line(_inside(x, a.x), at(a.mean), _inside(x, b.x), at(b.mean), "join") for a, b in pairwise(bins)
    ]
    marks = [_bin(found, _inside(x, found.x), at, series) for found in bins]
    parts.append(tag("g", joined, marks, class_=f"s{series % COLOURS}"))
    return svg(label, TOP + HEIGHT + 22, parts, "plot curve")


def _inside(x: Axis, value: float) -> float:
    return round(MARGIN_LEFT + x.at(value) * (100 - MARGIN_LEFT) / 100, 2)


def _bin(found: Bin, x: float, at: Callable[[float], float], series: int) -> Html:
    low, high = max(0.0, found.mean - found.error), min(100.0, found.mean + found.error)
    said = (
        f"{found.mean:.1f} % ({low:.1f} to {high:.1f}) where the length is {found.low:,.0f} to {found.high:,.0f}; "
        f"{found.n} instructions"
    )
    return tag(
        "g",
        tag("title", said),
        line(x, at(low), x, at(high), "whisker"),
        mark(series, f"{x}%", at(found.mean)),
    )
