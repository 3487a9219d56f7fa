"""Which matches are worth reading: those the judge contradicts itself about, the clearest losses, where two models differ
most, and judgments that could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from thinkserve.eval.answer import Answer
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.outcomes import Outcome

Kind = Literal["contested", "loss", "differ", "unreadable"]
LIMIT = 60
# What each kind gets at first; what one leaves free goes to the others.
SHARES: dict[Kind, int] = {"contested": 20, "loss": 20, "differ": 14, "unreadable": 6}


@dataclass(frozen=True, slots=True)
class Side:
    """One response of a match."""

    name: str
    answer: Answer | None
    """None: it is not in the run's folder."""
    series: int | None = None
    """None for a baseline."""
    preference: float | None = None
    """How far the judge preferred it over the baseline, where that was asked."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A match to read."""

    kind: Kind
    id: str
    severity: float
    evidence: Evidence
    """Of the (left) model, whose run has the instruction."""
    left: Side
    right: Side
    judgments: tuple[tuple[str, Judgment], ...]
    """Each with the name of the model that it is about, as shown."""
    preference: float | None
    """How far the left side was preferred over the right one."""


def select(evidence: Sequence[Evidence]) -> list[Disagreement]:
    """The matches to read: the most contested, the clearest losses and the largest differences in turn, then unreadable ones."""
    found: dict[Kind, list[Disagreement]] = {
        "contested": _in_turn([_contested(item) for item in evidence]),
        "loss": _in_turn([_losses(item) for item in evidence]),
        "differ": _in_turn([_differing(a, b) for a, b in _pairs(evidence)]),
        "unreadable": _in_turn([_unreadable(item) for item in evidence]),
    }
    chosen: dict[Kind, list[Disagreement]] = {kind: [] for kind in found}
    seen: set[tuple[str, str, str]] = set()
    for most in (SHARES, dict.fromkeys(found, LIMIT)):  # then what some kinds left free
        for kind, matches in found.items():
            free = min(most[kind], LIMIT - len(seen))
            fresh = [match for match in matches if _names(match) not in seen][:free]
            chosen[kind] += fresh
            seen |= {_names(match) for match in fresh}
    unreadable = chosen.pop("unreadable")
    return [*_in_turn(list(chosen.values())), *unreadable]


def _names(match: Disagreement) -> tuple[str, str, str]:
    return match.left.name, match.right.name, match.id


def _in_turn(lists: Iterable[list[Disagreement]]) -> list[Disagreement]:
    """The worst of each model, then the second worst of each ..."""
    return [match for turn in zip_longest(*lists) for match in turn if match is not None]


def _contested(item: Evidence) -> list[Disagreement]:
    """Games that contradict each other; with one game a match, preferences near a draw."""
    games = max((len(outcome.judgments) for outcome in item.outcomes.values()), default=0)
    found = []
    for outcome in item.outcomes.values():
        preference = outcome.preference
        if games > 1:
            severity = outcome.spread
        elif preference is None or outcome.forfeit or preference == 0.5:  # 0.5: the same response twice
            severity = 0.0
        else:
            severity = max(0.0, 0.15 - abs(preference - 0.5))
        if severity > 0:
            found.append(_match("contested", item, outcome, severity))
    return _worst(found)


def _losses(item: Evidence) -> list[Disagreement]:
    """By how clear the loss is, and how much it counts. Forfeits are left out: there is nothing to read."""
    found = []
    for outcome in item.outcomes.values():
        preference = outcome.preference
        if preference is not None and preference < 0.35 and not outcome.forfeit:
            weight = sum(j.verdict.weight for j in outcome.judgments if j.verdict is not None)
            found.append(_match("loss", item, outcome, (0.5 - preference) * weight))
    return _worst(found)


def _unreadable(item: Evidence) -> list[Disagreement]:
    return [
        _match("unreadable", item, outcome, 1.0)
        for outcome in item.outcomes.values()
        if any(judgment.verdict is None for judgment in outcome.judgments) and not outcome.forfeit
    ]


def _pairs(evidence: Sequence[Evidence]) -> list[tuple[Evidence, Evidence]]:
    """The pairs that a run compares, else the best model against each other one."""
    compared = []
    for item in evidence:
        for comparison in item.entry.run.scores.comparisons:
            others = [e for e in evidence if e.entry.run is item.entry.run and e.entry.model == comparison.b]
            compared += [(item, other) for other in others if item.entry.model == comparison.a]
    return compared or [(evidence[0], other) for other in evidence[1:]]


def _differing(a: Evidence, b: Evidence) -> list[Disagreement]:
    head_to_head: dict[str, list[Judgment]] = {}
    if a.entry.run is b.entry.run:
        for judgment in a.entry.run.judgments(a.entry.model, b.entry.model):
            head_to_head.setdefault(judgment.id, []).append(judgment)
    found = []
    for id, outcome in a.outcomes.items():
        other = b.outcomes.get(id)
        first, second = outcome.preference, None if other is None else other.preference
        if other is None or first is None or second is None or outcome.forfeit or other.forfeit:
            continue
        if abs(first - second) >= 0.5:
            judgments = [
                *((f"{a.name} \u2013 {b.name}", judgment) for judgment in head_to_head.get(id, ())),
                *((a.name, judgment) for judgment in outcome.judgments),
                *((b.name, judgment) for judgment in other.judgments),
            ]
            left = Side(a.name, a.answers.get(id), a.series, first)
            right = Side(b.name, b.answers.get(id), b.series, second)
            lean = 0.5 + (first - second) / 2
            found.append(
                Disagreement("differ", id, abs(first - second), a, left, right, tuple(judgments), lean)
            )
    return _worst(found)


def _match(kind: Kind, item: Evidence, outcome: Outcome, severity: float) -> Disagreement:
    left = Side(item.name, item.answers.get(outcome.id), item.series, outcome.preference)
    right = Side(outcome.baseline, item.baseline_answer(outcome))
    judgments = tuple((item.name, judgment) for judgment in outcome.judgments)
    return Disagreement(kind, outcome.id, severity, item, left, right, judgments, outcome.preference)


def _worst(found: list[Disagreement]) -> list[Disagreement]:
    return sorted(found, key=lambda match: (-match.severity, match.id))
