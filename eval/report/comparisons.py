"""Two models over the same instructions: how much better, how sure, in which categories, and at what cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from thinkserve.eval.report.axis import Axis, axis, with_reference
from thinkserve.eval.report.categories import MOST_DRAWN, SCHEMES, few_row, legend, scheme_title
from thinkserve.eval.report.costs import costs_of
from thinkserve.eval.report.elements import Child, Html, folded, join, tabs, tag
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.metrics import Interval, apart, interval, spoken, title_of, value
from thinkserve.eval.report.numerals import (
    between,
    count,
    gain,
    level_name,
    p_value,
    points,
)
from thinkserve.eval.report.rankings import Ranking
from thinkserve.eval.report.svg import COLOURS, Dot, dots, tick_row
from thinkserve.eval.report.tables import plain_table
from thinkserve.eval.scores import DIRECT, Comparison, Difference

LEVEL = 0.05
"""Below this a Holm-corrected p-value is drawn filled."""
OPEN = 4
"""Comparisons that are shown unfolded."""


def comparisons_of(ranking: Ranking) -> list[Comparison]:
    """The comparisons of all runs of a ranking, with the models' names as the ranking shows them."""
    found = []
    for run in ranking.runs:
        names = {entry.model: entry.name for entry in ranking.entries if entry.run is run}
        for comparison in run.scores.comparisons:
            a, b = (names.get(model, model) for model in (comparison.a, comparison.b))
            cost = {names.get(model, model): known for model, known in comparison.cost.items()}
            found.append(replace(comparison, a=a, b=b, cost=cost))
    return found


def comparisons_section(ranking: Ranking, evidence: Sequence[Evidence]) -> Html | None:
    """All comparisons, the first ones open; None where there are none."""
    found = comparisons_of(ranking)
    if not found:
        return None
    shown = [
        tag("article", tag("h3", _title(comparison)), _body(comparison, evidence), class_="card")
        for comparison in found[:OPEN]
    ]
    rest = [folded(_title(comparison), _body(comparison, evidence)) for comparison in found[OPEN:]]
    return join(_overview(found) if len(found) > 1 else None, shown, rest)


def sentence(comparison: Comparison) -> Html:
    """What a comparison found, in words that say no more than its interval does."""
    overall = comparison.overall
    a, b = tag("b", comparison.a), tag("b", comparison.b)
    if _too_few(overall):
        return join(f"{overall.n:,} instructions are too few to say whether ", a, " or ", b, " is better.")
    # Said of the better one, so that its interval has the sign of the sentence.
    better, worse, sign = (a, b, 1) if overall.difference >= 0 else (b, a, -1)
    low, high = sorted(sign * end for end in overall.ci)
    detail = (
        f" ({level_name(comparison.ci_level)} interval {gain(low)} to {gain(high)}, {p_value(overall.p)}, "
        f"{overall.n:,} instructions)."
    )
    metric = f" in {spoken(comparison.metric)}"
    gap = f"{points(abs(overall.difference))} points"
    if not apart(comparison):
        return join(better, " and ", worse, " cannot be told apart", metric, f": {gap} for the first", detail)
    return join(better, " is ", tag("b", gap), " ahead of ", worse, metric, detail)


def about_thinking(comparison: Comparison) -> bool:
    """Whether one checkpoint in thought mode is compared with itself in direct mode."""
    a, b = (re.sub(r" \(.*\)$", "", name) for name in (comparison.a, comparison.b))  # the run, if it is named
    return b == a + DIRECT


def leading(ranking: Ranking) -> Comparison | None:
    """The comparison that says most: thought against direct, or the only one."""
    found = comparisons_of(ranking)
    thinking = [comparison for comparison in found if about_thinking(comparison)]
    chosen = thinking or found
    return chosen[0] if len(chosen) == 1 else None


def _title(comparison: Comparison) -> str:
    what = "What thinking buys and costs: " if about_thinking(comparison) else ""
    return f"{what}{comparison.a} against {comparison.b}"


def _overview(found: Sequence[Comparison]) -> Html:
    head = ["Comparison", "Metric", "Difference", "Interval", "p", "n"]
    rows: list[list[Child]] = [
        [
            f"{c.a} \u2212 {c.b}",
            tag("td", title_of(c.metric)),
            tag("td", tag("b", gain(c.overall.difference)), class_="number", data_value=c.overall.difference),
            f"{gain(c.overall.ci[0])} to {gain(c.overall.ci[1])}",
            tag("td", p_value(c.overall.p), class_="number", data_value=c.overall.p),
            f"{c.overall.n:,}",
        ]
        for c in found
    ]
    return plain_table("All comparisons", head, rows)


def _body(comparison: Comparison, evidence: Sequence[Evidence]) -> Html:
    return join(
        tag("p", sentence(comparison), class_="finding"),
        None if _too_few(comparison.overall) else _remark(comparison.overall.note),
        _head_to_head(comparison),
        costs_of(comparison, evidence, priced=about_thinking(comparison)),
        _differences(comparison, evidence),
    )


def _remark(note: str | None) -> Html | None:
    return None if note is None else tag("p", note, class_="note")


def _head_to_head(comparison: Comparison) -> Html | None:
    group = comparison.head_to_head
    if group is None:
        return None
    key = "score" if group.score is not None else "win_rate"
    centre, around = value(group, key), interval(group, key)
    span = (
        "" if around is None else f", {level_name(around.level)} interval {between(around.low, around.high)}"
    )
    record = (
        ""
        if group.wins is None
        else f" {group.wins:,} wins, {group.draws or 0:,} draws, {group.losses or 0:,} losses."
    )
    return tag(
        "p",
        "Head to head, judged against each other: ",
        tag("b", comparison.a),
        f" wins {points(centre)} %{span}, {count(group.n)}.{record}",
        _remark(group.note),
    )


def _differences(comparison: Comparison, evidence: Sequence[Evidence]) -> Html | None:
    order = [
        *(s for s in SCHEMES if s in comparison.categories),
        *(s for s in comparison.categories if s not in SCHEMES),
    ]
    drawn = [scheme for scheme in order if 0 < len(comparison.categories[scheme]) <= MOST_DRAWN]
    if not drawn:
        return None
    series = {item.name: item.series for item in evidence}
    colours = (series.get(comparison.a, 0), series.get(comparison.b, 1))
    panels = [(scheme_title(scheme), _scheme(comparison, scheme, colours)) for scheme in drawn]
    tables = [folded("All differences as a table", _table(comparison, scheme)) for scheme in order]
    return join(
        tag("h4", "Difference by category"),
        legend([(colours[0], f"{comparison.a} better"), (colours[1], f"{comparison.b} better")]),
        tag(
            "p",
            "Filled: p below 0.05, for categories after Holm's correction. Hollow: could be chance.",
            class_="how",
        ),
        tabs("Scheme", panels),
        tables
        if len(order) == 1
        else [
            folded(
                "All differences as tables",
                join(*[join(tag("h5", scheme_title(s)), _table(comparison, s)) for s in order]),
            )
        ],
    )


def _scheme(comparison: Comparison, scheme: str, colours: tuple[int, int]) -> Html:
    found = comparison.categories[scheme]
    telling = [comparison.overall, *(difference for difference in found.values() if not _too_few(difference))]
    ends = [end for difference in telling for end in difference.ci]
    across = axis(with_reference(ends, 0, 1000), bounds=(-100, 100))
    head = tag("li", tag("span", "points", class_="axis-name"), tick_row(across, 0), class_="row head")
    ordered = sorted(found, key=lambda name: (-found[name].difference, name))
    rows = [_row("All instructions", comparison.overall, across, colours, comparison, overall=True)]
    rows += [
        _row(name, found[name], across, colours, comparison) for name in ordered if not _too_few(found[name])
    ]
    few = [(name, found[name].n) for name in ordered if _too_few(found[name])]
    return tag("ul", head, rows, few_row(few), class_="rows")


def _too_few(difference: Difference) -> bool:
    return difference.n == 0 or (difference.note or "").startswith("too few")


def _row(
    name: str,
    difference: Difference,
    across: Axis,
    colours: tuple[int, int],
    comparison: Comparison,
    *,
    overall: bool = False,
) -> Html:
    title = tag(
        "span",
        tag("span", name, class_="name"),
        " ",
        tag("small", count(difference.n)),
        class_="label",
    )
    corrected = difference.p if difference.p_holm is None else difference.p_holm
    shown = gain(difference.difference)
    spoken = (
        f"{name}: {comparison.a} minus {comparison.b} {shown} points, interval {gain(difference.ci[0])} to "
        f"{gain(difference.ci[1])}, {p_value(corrected)}{'' if difference.p_holm is None else ' (Holm)'}"
    )
    dot = Dot(
        difference.difference,
        Interval(*difference.ci, comparison.ci_level),
        spoken,
        colours[0] if difference.difference >= 0 else colours[1],
        hollow=corrected >= LEVEL,
    )
    colour = "" if dot.hollow else f"t{dot.series % COLOURS}"
    return tag(
        "li",
        title,
        dots([dot], across, 0),
        tag("span", tag("span", shown, class_=colour or None), class_="values"),
        class_="row overall" if overall else "row",
    )


def _table(comparison: Comparison, scheme: str) -> Html:
    head = [scheme_title(scheme), "n", "Difference", "Interval", "p", "p (Holm)", "Remark"]
    differences = comparison.categories[scheme]
    if len(differences) > MOST_DRAWN:  # hundreds of rows that say nothing
        differences = {name: found for name, found in differences.items() if not _too_few(found)}
    rows: list[list[Child]] = [
        [
            name,
            f"{found.n:,}",
            tag("td", gain(found.difference), class_="number", data_value=found.difference),
            f"{gain(found.ci[0])} to {gain(found.ci[1])}",
            tag("td", p_value(found.p), class_="number", data_value=found.p),
            None if found.p_holm is None else p_value(found.p_holm),
            tag("td", found.note or "", class_="remark"),
        ]
        for name, found in differences.items()
    ]
    if not rows:
        return Html("")
    return plain_table(f"Differences by {scheme_title(scheme)}", head, rows)
