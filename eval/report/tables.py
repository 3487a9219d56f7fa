"""The table of scores: a model a row, each number with its interval, the headline drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from thinkserve.eval.report.axis import Axis, axis, with_reference
from thinkserve.eval.report.elements import Child, Html, join, tag
from thinkserve.eval.report.metrics import columns, interval, title_of, value
from thinkserve.eval.report.numerals import MISSING, between, level_name, points, whole
from thinkserve.eval.report.rankings import Entry, Ranking
from thinkserve.eval.report.svg import Dot, dots, swatch, tick_row
from thinkserve.eval.scores import Group

DRAW = 50.0
LONG = 30
"""Characters from which a name is set smaller."""
WORDS = frozenset({"Model", "Metric", "Number", "Why", "Remark"})
"""The columns of plain tables that hold words."""
_Of: TypeAlias = Callable[[Group], "float | str | None"]


def scores_table(ranking: Ranking) -> Html:
    """The table of a ranking, in its order; sortable where scripts run."""
    keys = columns([entry.group for entry in ranking.entries], ranking.metric)
    across = rate_axis([entry.group for entry in ranking.entries], ranking.metric)
    extras = _extras(ranking.entries)
    head = [
        _th("Model"),
        tag("th", tick_row(across, DRAW), class_="plot-head", role="columnheader", scope="col"),
        *[_th(title_of(key), number=True) for key in keys],
        *[_th(title, number=True) for title, _ in extras],
    ]
    rows = []
    for series, entry in enumerate(ranking.entries):
        cells = [_plot_cell(entry, ranking.metric, across, series)]
        cells += [number_cell(entry.group, key, strong=key == ranking.metric) for key in keys]
        cells += [_extra_cell(title, of(entry.group)) for title, of in extras]
        name = tag(
            "th",
            swatch(series),
            entry.name,
            class_="long" if len(entry.name) > LONG else None,
            role="rowheader",
            scope="row",
            data_value=entry.name,
        )
        rows.append(tag("tr", name, cells, role="row"))
    return tag(
        "table",
        tag("caption", _caption(ranking)),
        tag("thead", tag("tr", head, role="row"), role="rowgroup"),
        tag("tbody", rows, role="rowgroup"),
        class_="scores sortable",
        role="table",
    )


def rate_axis(groups: Sequence[Group], key: str) -> Axis:
    """An axis for a rate of some groups and its intervals; with the draw where it is near."""
    found = []
    for group in groups:
        centre, around = value(group, key), interval(group, key)
        found += [] if centre is None else [centre]
        found += [] if around is None else [around.low, around.high]
    return axis(with_reference(found, DRAW, 15), bounds=(0, 100), through=DRAW)


def said(name: str, group: Group, key: str) -> str:
    """A number in words."""
    centre, around = value(group, key), interval(group, key)
    if centre is None:
        return f"{name}: no {title_of(key)}"
    span = (
        "" if around is None else f" ({level_name(around.level)} interval {between(around.low, around.high)})"
    )
    return f"{name}: {title_of(key)} {points(centre)}{span}, n = {group.n:,}"


def _plot_cell(entry: Entry, key: str, across: Axis, series: int) -> Html:
    centre = value(entry.group, key)
    dot = (
        None
        if centre is None
        else Dot(centre, interval(entry.group, key), said(entry.name, entry.group, key), series)
    )
    return tag("td", dots([dot], across, DRAW), class_="plot-cell", role="cell")


def number_cell(group: Group, key: str, *, strong: bool = False) -> Html:
    """A cell with a number and its interval."""
    centre, around = value(group, key), interval(group, key)
    span = None if around is None else tag("span", f"{between(around.low, around.high)}", class_="interval")
    return tag(
        "td",
        tag("b" if strong else "span", points(centre)),
        " " if span else None,
        span,
        class_="number",
        role="cell",
        data_label=title_of(key),
        data_value=centre,
    )


def _extras(entries: Sequence[Entry]) -> list[tuple[str, _Of]]:
    """The columns without an interval that at least one model has a number for."""
    candidates: list[tuple[str, _Of]] = [
        ("Instructions", lambda group: group.n),
        ("Unscored", lambda group: group.unscored),
        ("No response", lambda group: group.forfeits),
        ("Wins / draws / losses", _record),
        ("Characters", lambda group: group.mean_length),
        ("Tokens", lambda group: group.mean_tokens),
        ("Thought tokens", lambda group: group.mean_thought_tokens),
    ]
    found = {title: [of(entry.group) for entry in entries] for title, of in candidates}
    empty = {title for title, cells in found.items() if all(cell is None for cell in cells)}
    if not any(found["Unscored"]):
        empty.add("Unscored")
    return [(title, of) for title, of in candidates if title not in empty]


def _record(group: Group) -> str | None:
    if group.wins is None or group.losses is None:
        return None
    return f"{group.wins:,} / {group.draws or 0:,} / {group.losses:,}"


def _extra_cell(title: str, found: float | str | None) -> Html:
    shown = found if isinstance(found, str) else whole(found)
    return tag("td", shown, class_="number", role="cell", data_label=title, data_value=_sort_key(found))


def _sort_key(found: float | str | None) -> float | str | None:
    return int(found.split(" ")[0].replace(",", "")) if isinstance(found, str) else found


def _th(title: str, *, number: bool = False) -> Html:
    return tag(
        "th", title, class_="number" if number else None, role="columnheader", scope="col", data_sort=True
    )


def _caption(ranking: Ranking) -> str:
    levels: dict[float, list[str]] = {}
    for key in columns([entry.group for entry in ranking.entries], ranking.metric):
        for entry in ranking.entries:
            around = interval(entry.group, key)
            if around is not None and title_of(key) not in levels.setdefault(around.level, []):
                levels[around.level].append(title_of(key))
    if not levels:
        return f"Drawn: {title_of(ranking.metric)}."
    if len(levels) == 1:
        return f"Drawn: {title_of(ranking.metric)}. Intervals are {level_name(next(iter(levels)))} confidence intervals."
    each = "; ".join(f"{level_name(level)} for {', '.join(keys)}" for level, keys in levels.items())
    return f"Drawn: {title_of(ranking.metric)}. Confidence intervals: {each}."


def plain_table(
    label: str, head: Sequence[str], rows: Sequence[Sequence[Child]], *, class_: str = ""
) -> Html:
    """A table whose first column names the row, in a box that scrolls sideways where there is no room.

    Args:
        label: what the table holds, for those who hear it.
        head: the titles of the columns.
        rows: a cell each; `Html` cells may be whole `td` elements.
    """
    titles = [
        tag("th", title, scope="col", data_sort=True, class_="number" if at and title not in WORDS else None)
        for at, title in enumerate(head)
    ]
    body = [tag("tr", _row(row)) for row in rows]
    table = tag(
        "table", tag("thead", tag("tr", titles)), tag("tbody", body), class_=f"plain sortable {class_}"
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _row(row: Sequence[Child]) -> list[Html]:
    first, *others = row
    cells = [tag("th", first, scope="row")]
    for cell in others:
        whole_cell = isinstance(cell, Html) and cell.startswith("<td")
        cells.append(
            join(cell) if whole_cell else tag("td", MISSING if cell is None else cell, class_="number")
        )
    return cells
