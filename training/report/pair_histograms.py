"""Scores and lengths of pairs as histograms: all outputs behind, chosen and rejected ones before them, side by side.

As in all charts of a report, x is in percent of the width and y in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.eval.report.axis import axis
from thinkserve.eval.report.elements import Html, join, tag
from thinkserve.eval.report.numerals import MINUS, MISSING, short
from thinkserve.eval.report.svg import line, mark, svg, swatch

TOP, HEIGHT, MEANS = 8, 120, 16
"""Pixels above the bars, of the highest bar, and of the line of means below the axis."""
SERIES = {"chosen": 0, "rejected": 1, "all": 6}
"""The colour of each group."""
PLACES = {"all": (0.04, 0.92), "chosen": (0.12, 0.36), "rejected": (0.52, 0.36)}
"""Where each has its bar within a bin, and how wide it is, in parts of the bin."""


def pair_histograms(histograms: Mapping[str, Any], unit: str, rho: float) -> Html:
    """Each quantity before and after length control; once, where there is none.

    Args:
        histograms: of `pairs.json`.
        unit: of lengths.
        rho: the weight of length.
    """
    stages = [("uncontrolled", 0.0), *([("controlled", rho)] if rho else [])]
    figures = [
        _figure(f"{title} at \u03c1 = {weight:g}", named, histograms[quantity], histograms[quantity][stage])
        for quantity, title, named in (("score", "Score", None), ("length", "Response length", unit))
        for stage, weight in stages
    ]
    return join(_legend(), tag("div", figures, class_="multiples"))


def number(value: float | None) -> str:
    """A score or a length in about three digits."""
    if value is None:
        return MISSING
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return shown.replace("-", MINUS)


def _legend() -> Html:
    keys = [tag("span", swatch(SERIES[name]), name) for name in ("chosen", "rejected")]
    behind = tag("span", tag("span", class_="key thought"), "all scored outputs")
    return tag("p", keys, behind, class_="legend")


def _figure(title: str, unit: str | None, found: Mapping[str, Any], sides: Mapping[str, Any]) -> Html:
    groups = {"chosen": sides["chosen"], "rejected": sides["rejected"], "all": found["all"]}
    means = ", ".join(f"{name} {number(group['mean'])}" for name, group in groups.items())
    told = f"mean: {means}" if unit is None else f"mean in {unit}: {means}"
    caption = tag("figcaption", tag("b", title), tag("br"), tag("span", told, class_="axis-name"))
    drawn = _bars(found["edges"], groups, f"{title}; {told}")
    return tag("figure", caption, drawn, _beyond(found["beyond"]))


def _beyond(beyond: Sequence[bool]) -> Html | None:
    if not any(beyond):
        return None
    which = (
        "first and the last bar hold" if all(beyond) else "first bar holds" if beyond[0] else "last bar holds"
    )
    return tag("p", f"The {which} all that lies beyond, too.", class_="axis-name")


def _bars(edges: Sequence[float], groups: Mapping[str, Mapping[str, Any]], label: str) -> Html:
    """The share of each group in each bin, and where the means are."""
    low, high = edges[0], edges[-1]

    def at(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 3)

    most = max(_share(group, bin) for group in groups.values() for bin in range(len(edges) - 1)) or 1.0
    bottom = TOP + HEIGHT
    parts = []
    for name in ("all", "chosen", "rejected"):
        start, part = PLACES[name]
        bars = []
        for bin in range(len(edges) - 1):
            left, width = at(edges[bin]), at(edges[bin + 1]) - at(edges[bin])
            height = _share(groups[name], bin) / most
            bars.append(_bar(left + start * width, part * width, height, _said(edges, groups, bin)))
        # The style sheet's `thought` is a paler part.
        parts.append(
            tag("g", bars, class_=f"s{SERIES[name]} part thought" if name == "all" else f"s{SERIES[name]}")
        )
    parts.append(line(0, bottom, 100, bottom, "rail"))
    for name in ("chosen", "rejected"):
        mean = groups[name]["mean"]
        if mean is not None:
            at_mean = mark(SERIES[name], f"{at(mean)}%", bottom + MEANS / 2)
            parts.append(tag("g", at_mean, class_=f"s{SERIES[name]}"))
    ticks = [tick for tick in axis((low, high), wanted=4).ticks if low <= tick <= high]
    parts += [
        tag("text", short(tick), x=f"{at(tick)}%", y=bottom + MEANS + 12, class_="tick") for tick in ticks
    ]
    return svg(label, bottom + MEANS + 18, parts)


def _said(edges: Sequence[float], groups: Mapping[str, Mapping[str, Any]], bin: int) -> str:
    counts = ", ".join(f"{name} {group['counts'][bin]:,}" for name, group in groups.items())
    return f"{number(edges[bin])} to {number(edges[bin + 1])}: {counts}"


def _share(group: Mapping[str, Any], bin: int) -> float:
    return group["counts"][bin] / group["n"] if group["n"] else 0.0


def _bar(x: float, width: float, height: float, title: str) -> Html:
    pixels = round(height * HEIGHT, 1)
    return tag(
        "rect",
        tag("title", title),
        x=f"{x:.2f}%",
        y=f"{TOP + HEIGHT - pixels:g}",
        width=f"{width:.2f}%",
        height=f"{pixels:g}",
        class_="part",
    )
