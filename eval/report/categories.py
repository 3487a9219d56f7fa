"""Scores by category: a row a category, a dot with its interval a model, sorted; groups that say nothing are greyed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from thinkserve.eval.report.axis import Axis
from thinkserve.eval.report.elements import Child, Html, folded, join, tabs, tag
from thinkserve.eval.report.metrics import (
    columns,
    headline_metric,
    interval,
    spoken,
    title_of,
    too_few,
    value,
)
from thinkserve.eval.report.numerals import MISSING, count, points
from thinkserve.eval.report.rankings import Entry, Ranking
from thinkserve.eval.report.svg import COLOURS, Dot, dots, swatch, tick_row
from thinkserve.eval.report.tables import DRAW, number_cell, plain_table, rate_axis, said
from thinkserve.eval.scores import Group

SCHEMES = {
    "category": "Category",
    "topic": "Topic",
    "subcategory": "Subcategory",
    "dataset": "Source",
    "cluster": "Cluster",
}
# More models than this in one row are no longer told apart.
TOGETHER = 4
# More categories than this are a table and no chart (Arena-Hard v0.1 has 250 clusters of two questions).
MOST_DRAWN = 40


def schemes(ranking: Ranking) -> list[str]:
    """The schemes that any model has categories of."""
    found = dict.fromkeys(scheme for entry in ranking.entries for scheme in entry.group.categories)
    order = list(SCHEMES)
    return sorted(found, key=lambda scheme: order.index(scheme) if scheme in order else len(order))


def scheme_title(scheme: str) -> str:
    """The name of a scheme."""
    return SCHEMES.get(scheme, scheme)


def categories_section(ranking: Ranking) -> Html | None:
    """The charts of all schemes; None where the run has no categories."""
    found = schemes(ranking)
    if not found:
        return None
    drawn = [scheme for scheme in found if len(sorted_categories(ranking, scheme)) <= MOST_DRAWN]
    large = [scheme for scheme in found if scheme not in drawn]
    panels = [(scheme_title(scheme), _scheme(ranking, scheme)) for scheme in drawn]
    return join(
        tabs("Scheme", panels) if panels else None,
        [_large_scheme(ranking, scheme) for scheme in large],
    )


def sorted_categories(ranking: Ranking, scheme: str, entries: Sequence[Entry] | None = None) -> list[str]:
    """The categories of a scheme: those that say something first, the best first.

    Args:
        ranking: of some models.
        scheme: of categories.
        entries: whose numbers to go by, if not those of all models.
    """
    by = ranking.entries if entries is None else entries
    names = dict.fromkeys(name for entry in by for name in entry.group.categories.get(scheme, {}))
    metric = scheme_metric(ranking, scheme)

    def key(name: str) -> tuple[bool, float, str]:
        groups = _groups(by, scheme, name)
        values = [found for group in groups if (found := value(group, metric)) is not None]
        return (all(map(too_few, groups)), -fmean(values) if values else 0.0, name)

    return sorted(names, key=key)


def scheme_metric(ranking: Ranking, scheme: str) -> str:
    """The metric that a scheme's categories are shown in: the headline where they have it."""
    groups = [group for entry in ranking.entries for group in entry.group.categories.get(scheme, {}).values()]
    if any(value(group, ranking.metric) is not None for group in groups):
        return ranking.metric
    return headline_metric(ranking.bench, groups)


def _groups(entries: Sequence[Entry], scheme: str, name: str) -> list[Group]:
    found = [entry.group.categories.get(scheme, {}).get(name) for entry in entries]
    return [group for group in found if group is not None]


def _scheme(ranking: Ranking, scheme: str) -> Html:
    metric = scheme_metric(ranking, scheme)
    numbered = list(enumerate(ranking.entries))
    telling = [
        group
        for entry in ranking.entries
        for group in entry.group.categories.get(scheme, {}).values()
        if not too_few(group)
    ]
    across = rate_axis(telling, metric)
    if len(numbered) <= TOGETHER:
        chart = _chart(ranking, scheme, metric, numbered, across)
    else:
        panels = [
            (entry.name, _chart(ranking, scheme, metric, [(at, entry)], across)) for at, entry in numbered
        ]
        chart = tabs("Model", panels)
    return join(chart, folded("All numbers as a table", _table(ranking, scheme)))


def _chart(
    ranking: Ranking, scheme: str, metric: str, numbered: list[tuple[int, Entry]], across: Axis
) -> Html:
    entries = [entry for _, entry in numbered]
    rows, few = [], []
    for name in sorted_categories(ranking, scheme, entries):
        groups = _groups(entries, scheme, name)
        if all(map(too_few, groups)):
            few.append((name, max(group.n for group in groups)))
        else:
            rows.append(_category(name, scheme, metric, numbered, across))
    head = tag(
        "li", tag("span", title_of(metric), class_="axis-name"), tick_row(across, DRAW), class_="row head"
    )
    return join(
        legend([(at, entry.name) for at, entry in numbered]) if len(numbered) > 1 else None,
        tag("ul", head if rows else None, rows, few_row(few), class_="rows"),
    )


def few_row(few: Sequence[tuple[str, int]]) -> Html | None:
    """The groups that are too small to be drawn, each with its number of instructions."""
    if not few:
        return None
    names = [tag("span", name, " ", tag("small", count(n))) for name, n in few]
    return tag("li", tag("span", "Too few to say:", class_="few"), names, class_="tiny")


def legend(series: Sequence[tuple[int, str]]) -> Html:
    """Which mark is whose."""
    return tag("p", [tag("span", swatch(at), name) for at, name in series], class_="legend")


def _category(name: str, scheme: str, metric: str, numbered: list[tuple[int, Entry]], across: Axis) -> Html:
    marks: list[Dot | None] = []
    values = []
    for at, entry in numbered:
        group = entry.group.categories.get(scheme, {}).get(name)
        centre = None if group is None or too_few(group) else value(group, metric)
        if group is None or centre is None:
            marks.append(None)
            values.append(tag("span", MISSING))
        else:
            marks.append(Dot(centre, interval(group, metric), said(entry.name, group, metric), at))
            values.append(tag("span", points(centre), class_=f"t{at % COLOURS}"))
    n = max(group.n for group in _groups([entry for _, entry in numbered], scheme, name))
    title = tag("span", tag("span", name, class_="name"), " ", tag("small", count(n)), class_="label")
    return tag("li", title, dots(marks, across, DRAW), tag("span", values, class_="values"), class_="row")


def _large_scheme(ranking: Ranking, scheme: str) -> Html:
    found = len(sorted_categories(ranking, scheme))
    title = f"{scheme_title(scheme)}: {found} groups, too many and too small for a chart"
    metric = scheme_metric(ranking, scheme)
    head = [scheme_title(scheme), "n", *[f"{entry.name}, {spoken(metric)}" for entry in ranking.entries]]
    rows: list[list[Child]] = []
    for name in sorted_categories(ranking, scheme):
        groups = [entry.group.categories.get(scheme, {}).get(name, Group(0)) for entry in ranking.entries]
        most = f"{max(group.n for group in groups):,}"
        rows.append([name, most, *[points(value(group, metric)) for group in groups]])
    return folded(title, plain_table(f"Numbers by {scheme_title(scheme)}", head, rows, class_="tall"))


def _table(ranking: Ranking, scheme: str) -> Html:
    several = len(ranking.entries) > 1
    groups = [group for entry in ranking.entries for group in entry.group.categories.get(scheme, {}).values()]
    keys = columns(groups, scheme_metric(ranking, scheme))
    head = [
        scheme_title(scheme),
        *(["Model"] if several else []),
        "n",
        *map(title_of, keys),
        "Characters",
        "Remark",
    ]
    rows: list[list[Child]] = []
    for name in sorted_categories(ranking, scheme):
        for entry in ranking.entries:
            group = entry.group.categories.get(scheme, {}).get(name)
            if group is not None:
                rows.append(_cells(name, entry.name if several else None, group, keys))
    return plain_table(
        f"Numbers by {scheme_title(scheme)}", head, rows, class_="tall" if len(rows) > 60 else ""
    )


def _cells(name: str, model: str | None, group: Group, keys: Sequence[str]) -> list[Child]:
    length = None if group.mean_length is None else f"{group.mean_length:,.0f}"
    return [
        name,
        *([] if model is None else [tag("td", model)]),
        tag("td", f"{group.n:,}", class_="number", data_value=group.n),
        *[number_cell(group, key) for key in keys],
        length,
        tag("td", group.note or "", class_="remark"),
    ]
