"""How well the judge did its work: what could not be read, what was asked again, and whether the order of the responses
decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from thinkserve.eval.judgment import Judgment
from thinkserve.eval.report.elements import Child, Html, join, tag
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.metrics import Z95
from thinkserve.eval.report.numerals import between, points, share, whole
from thinkserve.eval.report.tables import plain_table


@dataclass(frozen=True, slots=True)
class Health:
    """Of the judgments about one model."""

    games: int | None
    unreadable: Mapping[str, int]
    """From why there is no verdict to how often."""
    retried: int | None
    order_flips: int | None
    """Of `order_pairs`: with the order swapped, the judge preferred the other response."""
    order_pairs: int | None
    first_wins: int | None
    """Of `decided`: the response that was shown first was preferred."""
    decided: int | None
    forfeits: int | None


def health_of(evidence: Evidence) -> Health:
    """From the scores where they say it, else counted over the judgments."""
    told = evidence.entry.run.scores.health.get(evidence.entry.model, {})
    judgments = [j for outcome in evidence.outcomes.values() for j in outcome.judgments]
    counted = bool(judgments)
    flips, pairs = _flips(evidence)
    decided = [j for j in judgments if j.verdict is not None and j.verdict.preference != 0.5]
    failures = Counter(j.failure or "unknown" for j in judgments if j.verdict is None)
    unreadable = told.get("unreadable", failures)
    return Health(
        games=_count(told, "games", len(judgments) if counted else None),
        unreadable=dict(unreadable) if isinstance(unreadable, Mapping) else {"no verdict": int(unreadable)},
        retried=_count(told, "retried", sum(j.attempts > 1 for j in judgments) if counted else None),
        order_flips=_count(told, "order_flips", flips if pairs else None),
        order_pairs=_count(told, "order_pairs", pairs or None),
        first_wins=sum(_first_won(j) for j in decided) if decided else None,
        decided=len(decided) or None,
        forfeits=evidence.entry.group.forfeits,
    )


def _count(told: Mapping[str, Any], key: str, counted: int | None) -> int | None:
    found = told.get(key)
    return int(found) if isinstance(found, int | float) else counted


def _first_won(judgment: Judgment) -> bool:
    assert judgment.verdict is not None
    return (judgment.verdict.preference > 0.5) == judgment.model_first


def _flips(evidence: Evidence) -> tuple[int, int]:
    """Pairs of games of one judge with the order swapped, both read, and how many of them contradict each other."""
    flips = pairs = 0
    for outcome in evidence.outcomes.values():
        by_judge: dict[str, dict[bool, float]] = {}
        for j in outcome.judgments:
            if j.verdict is not None:
                by_judge.setdefault(j.judge, {})[j.model_first] = j.verdict.preference
        for found in by_judge.values():
            if len(found) == 2:
                pairs += 1
                flips += (found[True] - 0.5) * (found[False] - 0.5) < 0
    return flips, pairs


def first_share(health: Health) -> tuple[float, float, float] | None:
    """How often the response that was shown first won, in percent, with its 95 % interval (Wilson's)."""
    if health.first_wins is None or not health.decided:
        return None
    n, p = health.decided, health.first_wins / health.decided
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
    lost = sum(health.unreadable.values())
    why = ", ".join(
        f"{kind} {count:,}" for kind, count in sorted(health.unreadable.items(), key=lambda k: -k[1])
    )
    first = first_share(health)
    return [
        name,
        whole(health.games),
        f"{lost:,} ({share(lost, health.games)})" if health.games else f"{lost:,}",
        why or "\u2013",
        whole(health.retried),
        _part(health.order_flips, health.order_pairs),
        "\u2013" if first is None else f"{points(first[0])} % ({between(first[1], first[2])})",
        whole(health.forfeits),
    ]


def _part(part: int | None, total: int | None) -> str:
    if part is None:
        return "\u2013"
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
