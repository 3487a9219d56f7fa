"""`report.md`: the tables of the report, for a pull request or a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from thinkserve.eval.report.categories import (
    MOST_DRAWN,
    scheme_metric,
    scheme_title,
    schemes,
    sorted_categories,
)
from thinkserve.eval.report.comparisons import comparisons_of
from thinkserve.eval.report.evidence import gather
from thinkserve.eval.report.health import health_rows
from thinkserve.eval.report.lengths import cost
from thinkserve.eval.report.methods import compat_rows, explanations, other_compat
from thinkserve.eval.report.metrics import columns, interval, title_of, too_few, value
from thinkserve.eval.report.numerals import (
    MISSING,
    between,
    gain,
    level_name,
    p_value,
    points,
    seconds,
    whole,
)
from thinkserve.eval.report.page import facts_of, title
from thinkserve.eval.report.rankings import Ranking
from thinkserve.eval.scores import Comparison, Difference, Group

# Characters that mean something to Markdown inside a line.
SPECIAL = "\\`*_[]<>|#~"


def markdown(rankings: Sequence[Ranking]) -> str:
    """The whole file."""
    return "\n\n".join(_ranking(ranking) for ranking in rankings) + "\n"


def escaped(value: object) -> str:
    """Text that stays text: no markup, no new line."""
    line = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in line)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column names the row, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *[[escaped(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(group: Group, key: str) -> str:
    """A number with its interval."""
    around = interval(group, key)
    shown = points(value(group, key))
    return shown if around is None else f"{shown} ({between(around.low, around.high)})"


def _ranking(ranking: Ranking) -> str:
    evidence = gather(ranking)
    facts = "; ".join(f"{term}: {escaped(fact)}" for term, fact in facts_of(ranking))
    warnings = [*([ranking.apart] if ranking.apart else []), *ranking.notes]
    warnings += [f"{entry.name}: {entry.group.note}" for entry in ranking.entries if entry.group.note]
    head, rows = health_rows(evidence)
    lengths = [(item.name, cost(item.lengths)) for item in evidence if item.lengths]
    parts = [
        f"# {escaped(title(ranking))}",
        facts + ".",
        "\n".join(f"> {escaped(warning)}\n>" for warning in warnings).removesuffix("\n>"),
        "## Scores",
        scores_table(ranking),
        _comparisons(ranking),
        *[_categories(ranking, scheme) for scheme in schemes(ranking)],
        "## Cost of an instruction" if lengths else "",
        table(
            ["Model", "Thought tokens", "Response tokens", "Seconds"],
            [[n, whole(c.thought_tokens), whole(c.response_tokens), seconds(c.seconds)] for n, c in lengths],
        )
        if lengths
        else "",
        "## Judge health",
        table(head, rows),
        "## How these numbers were made",
        "\n".join(f"- **{escaped(term)}**: {escaped(words)}" for term, words in explanations(ranking)),
        _compat(ranking),
    ]
    return "\n\n".join(part for part in parts if part)


def scores_table(ranking: Ranking) -> str:
    """The ranking as a Markdown table."""
    groups = [entry.group for entry in ranking.entries]
    keys = columns(groups, ranking.metric)
    head = ["Model", *map(title_of, keys), "n", "Unscored", "No response", "Characters", "Thought tokens"]
    rows = [
        [
            entry.name,
            *[number(entry.group, key) for key in keys],
            whole(entry.group.n),
            whole(entry.group.unscored),
            whole(entry.group.forfeits),
            whole(entry.group.mean_length),
            whole(entry.group.mean_thought_tokens),
        ]
        for entry in ranking.entries
    ]
    return table(head, rows)


def _comparisons(ranking: Ranking) -> str:
    found = comparisons_of(ranking)
    if not found:
        return ""
    head = ["Comparison", "Difference", "Interval", "p", "n"]
    parts = ["## Comparisons", table(head, [_difference(_pair(c), c.overall, c.overall.p, c) for c in found])]
    for comparison in found:
        for scheme, differences in comparison.categories.items():
            if len(differences) <= MOST_DRAWN:
                rows = [
                    _difference(name, d, d.p if d.p_holm is None else d.p_holm, comparison)
                    for name, d in sorted(differences.items(), key=_telling_first)
                ]
                parts.append(f"### {escaped(_pair(comparison))} by {escaped(scheme_title(scheme).lower())}")
                parts.append(table([scheme_title(scheme), "Difference", "Interval", "p (Holm)", "n"], rows))
    return "\n\n".join(parts)


def _telling_first(item: tuple[str, Difference]) -> tuple[bool, float]:
    _, found = item
    return ((found.note or "").startswith("too few"), -found.difference)


def _pair(comparison: Comparison) -> str:
    return f"{comparison.a} \u2212 {comparison.b} ({title_of(comparison.metric)})"


def _difference(name: str, found: Difference, p: float, comparison: Comparison) -> list[str]:
    if (found.note or "").startswith("too few"):
        return [name, "too few to say", MISSING, MISSING, whole(found.n)]
    span = f"{gain(found.ci[0])} to {gain(found.ci[1])} ({level_name(comparison.ci_level)})"
    return [name, gain(found.difference), span, p_value(p), whole(found.n)]


def _categories(ranking: Ranking, scheme: str) -> str:
    names = sorted_categories(ranking, scheme)
    if len(names) > MOST_DRAWN:
        return ""
    metric = scheme_metric(ranking, scheme)
    rows = []
    for name in names:
        groups = [entry.group.categories.get(scheme, {}).get(name) for entry in ranking.entries]
        n = max((group.n for group in groups if group is not None), default=0)
        rows.append([name, whole(n), *[_cell(group, metric) for group in groups]])
    head = [escaped(scheme_title(scheme)), "n", *[escaped(entry.name) for entry in ranking.entries]]
    return f"## {title_of(metric)} by {escaped(scheme_title(scheme).lower())}\n\n{table(head, rows)}"


def _cell(group: Group | None, metric: str) -> str:
    if group is None:
        return MISSING
    return "too few to say" if too_few(group) else number(group, metric)


def _compat(ranking: Ranking) -> str:
    rows = compat_rows(ranking)
    if not rows:
        return ""
    head = ["Model", "Number", ranking.compat, other_compat(ranking.compat), "Why"]
    return f"### Where the other computation differs\n\n{table(head, rows)}"
