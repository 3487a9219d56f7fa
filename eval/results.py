"""From what judges said to `scores.json`: the bench's scores, and what every bench has beside them.

That is: comparisons of the models with each other, above all of thought mode with direct mode; the length of thoughts;
the health of the judges; and the paper's topics, where the instructions have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.comparison import compare, head_to_head
from thinkserve.eval.folder import RunFolder, read_lengths
from thinkserve.eval.instruction import CLUSTER, TOPIC
from thinkserve.eval.judging.health import health_of
from thinkserve.eval.judging.stage import Judged, with_all_judges
from thinkserve.eval.match import Match, Verdict
from thinkserve.eval.report.lengths import cost, mean_thought_tokens
from thinkserve.eval.scores import Comparison, Group, Scores
from thinkserve.eval.win_rates import with_win_rates

# Beyond, the pairs of models are more than anybody reads.
MOST_COMPARED = 6


@dataclass(frozen=True, slots=True)
class Results:
    """What the judges said: from model, or from (model, other model), to what one judge after the other found."""

    judges: tuple[str, ...]
    by_model: Mapping[str, list[Judged]] = field(default_factory=dict)
    head_to_head: Mapping[tuple[str, str], list[Judged]] = field(default_factory=dict)


def assemble(
    bench: Bench,
    folder: RunFolder,
    results: Results,
    *,
    compat: Compat,
    seed: int,
    notes: Sequence[str] = (),
    rival: str | None = None,
) -> Scores:
    """The scores of a run.

    Args:
        bench: makes those of its own.
        folder: of the run; the lengths of thoughts are in it.
        results: what the judges said.
        compat: as in `Bench.score`.
        seed: of all bootstraps.
        notes: about the whole run.
        rival: the baseline, where it is another model and not the bench's own: then the models are compared with it.
    """
    matches = {
        model: with_all_judges([one.matches for one in found]) for model, found in results.by_model.items()
    }
    scores = bench.score(matches, compat=compat, seed=seed)
    direct = {
        pair: with_all_judges([one.matches for one in found]) for pair, found in results.head_to_head.items()
    }
    models = {
        model: replace(group, mean_thought_tokens=mean_thought_tokens(folder.lengths(model)))
        for model, group in filled_in(scores.models, matches, seed).items()
    }
    return replace(
        scores,
        models=models,
        comparisons=tuple(_comparisons(folder, matches, direct, rival, seed)),
        health={
            model: health_of(matches[model], [judgment for one in found for judgment in one.judgments])
            for model, found in results.by_model.items()
        },
        notes=(*scores.notes, *notes),
    )


def filled_in(
    models: Mapping[str, Group], matches: Mapping[str, Sequence[Match]], seed: int
) -> dict[str, Group]:
    """The groups of models with what the bench itself does not make: win rates, and topics."""
    return _with_topics(with_win_rates(models, matches, seed), matches, seed)


def _with_topics(
    models: Mapping[str, Group], matches: Mapping[str, Sequence[Match]], seed: int
) -> dict[str, Group]:
    """The groups of models with those of their topics, which no bench has of its own: plain win rates."""
    found = dict(models)
    for model, played in matches.items():
        if TOPIC in found[model].categories or not any(
            TOPIC in match.instruction.categories for match in played
        ):
            continue
        topics = head_to_head(played, seed=seed, schemes=(TOPIC,)).categories
        found[model] = replace(found[model], categories={**found[model].categories, **topics})
    return found


def _comparisons(
    folder: RunFolder,
    matches: Mapping[str, Sequence[Match]],
    direct: Mapping[tuple[str, str], Sequence[Match]],
    rival: str | None,
    seed: int,
) -> list[Comparison]:
    """Thought mode against direct mode first, then all other pairs of models unless they are too many.

    Models that were judged against each other, as the paper's topics have it, are compared by these very verdicts.
    """
    pairs = list(direct)
    if len(matches) <= MOST_COMPARED:
        if rival is not None:
            pairs += [(model, rival) for model in matches]
        pairs += [pair for pair in combinations(matches, 2) if pair not in direct]
    schemes = schemes_of(match for found in matches.values() for match in found)
    found = []
    for a, b in pairs:
        theirs = mirrored(matches[a], a) if b == rival else matches[b]
        comparison = compare(a, b, matches[a], theirs, seed=seed, schemes=schemes)
        played = matches[a] if b == rival else direct.get((a, b))
        if played is not None:
            group = head_to_head(played, seed=seed, schemes=schemes)
            comparison = replace(comparison, head_to_head=group)
        costs = {model: known for model in (a, b) if (known := _cost(folder.lengths(model)))}
        found.append(replace(comparison, cost=costs))
    return found


def mirrored(matches: Sequence[Match], model: str) -> list[Match]:
    """The same matches as the baseline sees them, with the model as its opponent."""
    return [
        Match(
            match.instruction,
            match.baseline,
            match.answer,
            model,
            tuple(replace(played, verdict=_mirrored(played.verdict)) for played in match.games),
        )
        for match in matches
    ]


def _mirrored(verdict: Verdict | None) -> Verdict | None:
    return None if verdict is None else replace(verdict, preference=1 - verdict.preference)


def _cost(path: Path) -> dict[str, float]:
    found = cost(read_lengths(path))
    numbers: dict[str, Any] = {
        "thought_tokens": found.thought_tokens,
        "response_tokens": found.response_tokens,
        "seconds": found.seconds,
    }
    return {name: number for name, number in numbers.items() if number is not None}


def schemes_of(matches: Iterable[Match]) -> tuple[str, ...]:
    """The schemes of categories that are worth a comparison, in the order in which they come up."""
    found = dict.fromkeys(scheme for match in matches for scheme in match.instruction.categories)
    return tuple(scheme for scheme in found if scheme != CLUSTER)
