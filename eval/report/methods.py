"""How the numbers of a report were made, in words."""

from __future__ import annotations

import json

from thinkserve.eval.report.comparisons import comparisons_of
from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.metrics import BY_KEY, METRICS, columns, title_of, value
from thinkserve.eval.report.numerals import MISSING, points
from thinkserve.eval.report.rankings import Entry, Ranking
from thinkserve.eval.report.tables import plain_table

COMPAT = {
    "official": "the published computation is reproduced with its quirks, so the numbers can be put next to a leaderboard",
    "aligned": "the quirks of the published computation are mended: AlpacaEval's rows are joined by instruction and not by "
    "position, Arena-Hard's bootstrap is seeded and draws whole questions",
}
FORFEITS = (
    "Judges get responses only. A thought is cut off before anything is judged, counted or measured; its length is kept "
    "apart, for this report. An output whose thought never ended has no response and is a loss."
)
COMPARED = (
    "Two models are compared over the same instructions: the mean of the paired differences, with a paired bootstrap "
    "interval and the two-sided p-value of random sign flips. Over the categories of a scheme, p-values are corrected by Holm's method."
)
GROUPS = (
    "A category has the same numbers over its own instructions. A group with few instructions, or with an interval so wide that "
    "it holds nearly everything, is greyed: too few to say."
)


def explanations(ranking: Ranking) -> list[tuple[str, str]]:
    """Terms and what they mean; only of what the ranking has."""
    groups = [entry.group for entry in ranking.entries]
    keys = columns(groups, ranking.metric)
    found = [(metric.title, metric.words) for metric in METRICS if metric.key in keys]
    found.append(("Thoughts", FORFEITS))
    if any(group.categories for group in groups):
        found.append(("Categories", GROUPS))
    if comparisons_of(ranking):
        found.append(("Comparisons", COMPARED))
    words = COMPAT.get(ranking.compat, "")
    found.append(("Compat", f"{ranking.compat}: {words}." if words else ranking.compat))
    return found


def compat_rows(ranking: Ranking) -> list[tuple[str, str, str, str, str]]:
    """Model, number, as shown, as it would be under the other compat, and why."""
    return [
        (
            entry.name,
            title_of(key),
            points(value(entry.group, key)),
            points(other),
            entry.group.note or MISSING,
        )
        for entry in ranking.entries
        for key, other in entry.group.compat.items()
        if key in BY_KEY
    ]


def other_compat(compat: str) -> str:
    """The one that the numbers were not made with."""
    return "aligned" if compat == "official" else "official"


def methods_section(ranking: Ranking) -> Html:
    """The words, the numbers that differ under the other compat, and what belongs to this bench alone."""
    terms = [tag("div", tag("dt", term), tag("dd", words)) for term, words in explanations(ranking)]
    return join(
        tag("dl", terms, class_="terms"),
        _compat(ranking),
        [_details(entry) for entry in _first_of_runs(ranking)],
    )


def _compat(ranking: Ranking) -> Html | None:
    rows = compat_rows(ranking)
    if not rows:
        return None
    head = ["Model", "Number", ranking.compat, other_compat(ranking.compat), "Why"]
    cells: list[list[Child]] = [
        [name, tag("td", number), shown, other, tag("td", why, class_="remark")]
        for name, number, shown, other, why in rows
    ]
    return join(tag("h3", "Where the other computation differs"), plain_table("Compat", head, cells))


def _first_of_runs(ranking: Ranking) -> list[Entry]:
    return list({id(entry.run): entry for entry in reversed(ranking.entries)}.values())[::-1]


def _details(entry: Entry) -> Html:
    details = entry.run.scores.details
    if not details:
        return Html("")
    shown = json.dumps(details, indent=2, ensure_ascii=False, default=str, sort_keys=True)
    return folded(
        f"Details of {entry.run.name}: coefficients, folds, weights", tag("pre", shown, class_="text")
    )
