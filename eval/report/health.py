"""How well the judge did its work: what could not be read, what was asked again, and whether the order of the responses
decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from thinkserve.eval.report.elements import Child, Html, join, tag
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.metrics import Z95
from thinkserve.eval.report.numerals import MISSING, between, points, share, whole
from thinkserve.eval.report.tables import plain_table


@dataclass(frozen=True, slots=True)
class Health:
    """Of the judgments about one model, as `Scores.health` tells it; None: it does not say."""

    games: int | None
    unscored: int | None
    why: Mapping[str, int]
    """From the reason why there is no verdict to how often."""
    retried: int | None
    order_flips: int | None
    """Of `order_pairs`: with the order swapped, the judge preferred the other response."""
    order_pairs: int | None
    first_preferred: int | None
    """Of `decided`: the response that was shown first was preferred."""
    decided: int | None
    forfeits: int | None
    """Matches without a response, which no judge saw."""


def health_of(evidence: Evidence) -> Health:
    """Of one model."""
    entry = evidence.entry
    told = entry.run.scores.health.get(entry.model, {})
    unreadable = told.get("unreadable")
    why = unreadable if isinstance(unreadable, Mapping) else {}
    pairs = _count(told.get("order_pairs"))
    orders = {
        judgment.model_first for outcome in evidence.outcomes.values() for judgment in outcome.judgments
    }
    # Where the model is always shown first, how often the first one wins is the win rate once more.
    swapped = bool(pairs) or len(orders) == 2
    return Health(
        games=_count(told.get("games")),
        unscored=_count(told.get("unscored", sum(why.values()) if why else None)),
        why={str(kind): int(count) for kind, count in why.items()},
        retried=_count(told.get("retried")),
        order_flips=_count(told.get("order_flips")) if pairs else None,
        order_pairs=pairs,
        first_preferred=_count(told.get("first_preferred")) if swapped else None,
        decided=_count(told.get("decided")),
        forfeits=entry.group.forfeits,
    )


def _count(told: object) -> int | None:
    return int(told) if isinstance(told, int | float) else None


def first_share(health: Health) -> tuple[float, float, float] | None:
    """How often the response that was shown first won, in percent, with its 95 % interval (Wilson's)."""
    if health.first_preferred is None or not health.decided:
        return None
    n, p = health.decided, health.first_preferred / health.decided
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return 100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def health_rows(evidence: Sequence[Evidence]) -> tuple[list[str], list[list[str]]]:
    """The table of judge health, as titles and cells of text."""
    head = [
        "Model", "Games", "Without a verdict", "Why", "Asked again", "Verdict flips with the order",
        "First shown wins", "No response",
    ]  # fmt: skip
    return head, [_row(item.name, health_of(item)) for item in evidence]


def _row(name: str, health: Health) -> list[str]:
    why = ", ".join(
        f"{kind} {count:,}" for kind, count in sorted(health.why.items(), key=lambda item: -item[1])
    )
    first = first_share(health)
    return [
        name,
        whole(health.games),
        _part(health.unscored, health.games),
        why or MISSING,
        whole(health.retried),
        _part(health.order_flips, health.order_pairs),
        MISSING if first is None else f"{points(first[0])} % ({between(first[1], first[2])})",
        whole(health.forfeits),
    ]


def _part(part: int | None, total: int | None) -> str:
    if part is None:
        return MISSING
    return f"{part:,}" if not total else f"{part:,} of {total:,} ({share(part, total)})"


def health_section(evidence: Sequence[Evidence]) -> Html:
    """The table, and how to read it."""
    head, rows = health_rows(evidence)
    cells: list[list[Child]] = [
        [
            row[0],
            *[tag("td", cell, class_="remark" if at == 2 else "number") for at, cell in enumerate(row[1:])],
        ]
        for row in rows
    ]
    how = (
        "A judgment without a verdict is unscored: never a loss, never a tie. \u201cFirst shown wins\u201d would be "
        "50 % for a judge who does not care about the order (95 % interval in brackets). \u201cNo response\u201d: the "
        "thought never ended, which is a loss, and the judge is not asked."
    )
    return join(tag("p", how, class_="how"), plain_table("Judge health", head, cells))
