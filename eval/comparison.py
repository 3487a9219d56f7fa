"""Two models over the same instructions: how much better one is, overall and by category, and whether that is chance.

`compare` pairs what a judge said of each model against the baseline; `head_to_head` counts what it said of the two
against each other. Both count instructions, by the mean preference over the games of one, in points of 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from thinkserve.eval.length_control import LengthControlled, length_controlled, length_difference
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Comparison, Difference, Group
from thinkserve.eval.statistics import (
    bootstrap_mean_ci,
    holm,
    paired_bootstrap,
    small_group_note,
    standard_error,
)

CI_LEVEL = 0.95


def preference_of(match: Match) -> float | None:
    """The mean preference over the games that were scored, from 0.0 to 1.0; None where none was."""
    scored = [played.verdict.preference for played in match.games if played.verdict]
    return sum(scored) / len(scored) if scored else None


def compare(
    a: str,
    b: str,
    matches_a: Sequence[Match],
    matches_b: Sequence[Match],
    *,
    metric: str = "win_rate",
    seed: int,
    schemes: Iterable[str] = (),
) -> Comparison:
    """Compare two models that were judged against the same baseline, instruction by instruction.

    An instruction that is missing or unscored for one of the two is left out for both, and counted in the note. With
    none left the difference is 0 in an interval from -100 to 100: nothing is known. The games of an instruction weigh
    the same, also where a bench weighs them (Arena-Hard), so that every instruction is one pair.

    Args:
        a: the first model.
        b: the second, which is taken from the first.
        matches_a: of the first model with the baseline.
        matches_b: of the second.
        metric: what the report calls the difference; a win rate by nature.
        seed: of the bootstrap and of the sign flips.
        schemes: of the categories to compare in; each is corrected for its own number of categories.
    """
    first, second = _by_instruction(matches_a), _by_instruction(matches_b)
    pairs = {key: 100 * (first[key] - second[key]) for key in first if key in second}
    instructions = {match.instruction.id: match.instruction for match in (*matches_a, *matches_b)}
    left_out = len(instructions) - len(pairs)
    categories = {}
    for scheme in schemes:
        members: dict[str, list[float]] = {}
        for key, difference in pairs.items():
            if scheme in instructions[key].categories:
                members.setdefault(instructions[key].categories[scheme], []).append(difference)
        if members:
            categories[scheme] = _corrected(
                {name: _difference(found, seed) for name, found in members.items()}
            )
    note = f"{left_out} of {len(instructions)} instructions left out: missing or unscored for one of the two"
    overall = _difference(list(pairs.values()), seed, note if left_out else None)
    return Comparison(a, b, metric, overall, categories, ci_level=CI_LEVEL)


def _by_instruction(matches: Sequence[Match]) -> dict[str, float]:
    found = {match.instruction.id: preference_of(match) for match in matches}
    return {key: preference for key, preference in found.items() if preference is not None}


def _difference(differences: list[float], seed: int, note: str | None = None) -> Difference:
    if not differences:
        return Difference(0, 0.0, (-100.0, 100.0), 1.0, note=note or small_group_note(0, None))
    result = paired_bootstrap(differences, seed=seed, level=CI_LEVEL)
    notes = [text for text in (small_group_note(len(differences), result.ci), note) if text]
    return Difference(len(differences), result.difference, result.ci, result.p, note="; ".join(notes) or None)


def _corrected(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    corrected = holm({name: difference.p for name, difference in differences.items()})
    return {name: replace(difference, p_holm=corrected[name]) for name, difference in differences.items()}


def head_to_head(matches: Sequence[Match], *, seed: int, schemes: Iterable[str] = ()) -> Group:
    """The numbers of a model that was judged against another one in the baseline's place.

    The length-controlled win rate is a fit over all instructions without categories; a scheme has a fit of its own, with
    them, so the rates of categories need not average to that of the whole.

    Args:
        matches: of the model.
        seed: of the bootstraps.
        schemes: of the categories to count in as well.
    """
    whole = _group(matches, seed)
    if not whole.n:
        return whole
    controlled = _length_controlled(_scored(matches))
    return replace(
        whole,
        length_controlled_win_rate=controlled.win_rate,
        lc_standard_error=controlled.standard_error,
        categories={scheme: found for scheme in schemes if (found := _categories(matches, scheme, seed))},
    )


def _categories(matches: Sequence[Match], scheme: str, seed: int) -> dict[str, Group]:
    members: dict[str, list[Match]] = {}
    for match in matches:
        if scheme in match.instruction.categories:
            members.setdefault(match.instruction.categories[scheme], []).append(match)
    scored = _scored([match for found in members.values() for match in found])
    controlled = _length_controlled(scored, scheme) if scored else None
    return {
        name: replace(
            _group(found, seed),
            length_controlled_win_rate=None if controlled is None else controlled.by_group.get(name),
            lc_standard_error=None if controlled is None else controlled.error_by_group.get(name),
        )
        for name, found in members.items()
    }


def _scored(matches: Sequence[Match]) -> list[tuple[Match, float]]:
    return [(match, preference) for match in matches if (preference := preference_of(match)) is not None]


def _length_controlled(scored: list[tuple[Match, float]], scheme: str | None = None) -> LengthControlled:
    return length_controlled(
        [preference for _, preference in scored],
        [length_difference(match) for match, _ in scored],
        [match.instruction.categories[scheme] for match, _ in scored] if scheme else None,
    )


def _group(matches: Sequence[Match], seed: int) -> Group:
    """All numbers but those of length control, which are not of one group alone."""
    scored = _scored(matches)
    points = [100 * preference for _, preference in scored]
    if not points:
        return Group(0, len(matches), note=small_group_note(0, None))
    wins, losses = sum(point > 50 for point in points), sum(point < 50 for point in points)
    draws = len(points) - wins - losses
    ci = bootstrap_mean_ci(points, seed=seed, level=CI_LEVEL)
    return Group(
        n=len(points),
        unscored=len(matches) - len(points),
        forfeits=sum(not match.answer.complete for match, _ in scored),
        win_rate=sum(points) / len(points),
        standard_error=standard_error(points) if len(points) > 1 else None,
        wins=wins,
        draws=draws,
        losses=losses,
        discrete_win_rate=100 * (wins + draws / 2) / len(points),
        ci=ci,
        ci_level=CI_LEVEL,
        mean_length=sum(len(match.answer.response) for match, _ in scored) / len(points),
        note=small_group_note(len(points), ci),
    )
