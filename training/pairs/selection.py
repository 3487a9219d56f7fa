"""Best against worst: which of the outputs to an instruction is chosen, and which rejected.

All draws are seeded by the instruction, so a pair does not hang on which other instructions there are or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from thinkserve.training.pairs.candidates import Broken, Candidates, Readable
from thinkserve.training.pairs.length_control import SAME, controlled
from thinkserve.training.recipe import PairsRecipe

Reason = Literal[
    "no_readable", "unscored", "one_output", "tied", "small_spread", "low_chosen", "length_control"
]
"""Why an instruction has no pair, the first that holds: no output has a readable response; none of the readable ones has
a score; there is one distinct output; all scores are equal; they differ by no more than `min_spread`; none reaches
`min_chosen_score`; length control leaves no other output below the chosen one."""
UNDECIDED: tuple[Reason, ...] = ("one_output", "tied", "small_spread", "length_control")
"""Readable outputs that tie: `fill` sets a broken output against one of them."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The two outputs of a pair."""

    chosen: Readable
    rejected: Readable | Broken
    chosen_value: float
    rejected_value: float | None
    """After length control; None: the rejected output is broken."""
    chosen_ties: int
    rejected_ties: int
    """Other outputs that were as good, or as bad."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was picked at one weight of length."""

    rho: float
    picks: tuple[Pick | Reason, ...]
    """For each instruction, in the order in which they were given."""
    beyond_cap: int
    """Instructions whose broken output was to be the rejected one, but for `max_broken`."""

    @property
    def pairs(self) -> list[Pick]:
        """The pairs alone."""
        return [pick for pick in self.picks if isinstance(pick, Pick)]

    @property
    def readable_pairs(self) -> list[tuple[Readable, Readable]]:
        """Chosen and rejected where both have a response."""
        return [(pick.chosen, pick.rejected) for pick in self.pairs if isinstance(pick.rejected, Readable)]


def select(groups: Sequence[Candidates], rho: float, recipe: PairsRecipe, seed: int) -> Selection:
    """Pick a pair of each instruction that allows one.

    Args:
        groups: the outputs to each instruction; ids are distinct.
        rho: weight of length.
        recipe: all the rest.
        seed: of ties, and of which instructions get a broken output as the rejected one.
    """
    picks = [best_against_worst(group, rho, recipe, seed) for group in groups]
    beyond_cap = 0
    if recipe.broken != "drop":
        wanted = {}
        for number, group in enumerate(groups):
            if recipe.broken == "reject" or picks[number] in UNDECIDED:
                pick = _best_against_broken(group, rho, recipe, seed)
                if pick is not None:
                    wanted[number] = pick
        order = sorted(wanted, key=lambda number: _draw_order(groups[number].id, seed))
        pairs = sum(isinstance(pick, Pick) for pick in picks)
        taken = 0
        for number in order:
            grown = pairs + (not isinstance(picks[number], Pick))
            # Each one taken leaves less room, so what does not fit now fits later neither. Products such as 0.29 * 100
            # come out just below the whole number that is meant.
            if taken + 1 <= recipe.max_broken * grown + SAME:
                picks[number], pairs, taken = wanted[number], grown, taken + 1
        beyond_cap = len(wanted) - taken
    return Selection(rho, tuple(picks), beyond_cap)


def best_against_worst(group: Candidates, rho: float, recipe: PairsRecipe, seed: int) -> Pick | Reason:
    """The readable output of the highest value against that of the lowest."""
    reason = _no_contest(group, recipe)
    if reason is not None:
        return reason
    values = controlled(group.normal_scores, group.normal_lengths, rho)
    best = _best(group, values, recipe, seed)
    if best is None:
        return "low_chosen"
    chosen, chosen_value, chosen_ties = best
    others = [
        (value, one)
        for value, one in zip(values, group.readable, strict=True)
        if value < chosen_value - SAME and one.text != chosen.text
    ]
    if not others:
        return "length_control"
    worst = min(value for value, _ in others)
    equal = [one for value, one in others if value <= worst + SAME]
    rejected = _one_of(equal, recipe, f"rejected {seed} {group.id}")
    return Pick(chosen, rejected, chosen_value, worst, chosen_ties, len(equal) - 1)


def _no_contest(group: Candidates, recipe: PairsRecipe) -> Reason | None:
    """Why no two outputs can be set against each other, whatever their lengths are."""
    if not group.readable:
        return "unscored" if group.unscored else "no_readable"
    if len({one.text for one in group.readable}) == 1:
        return "one_output"
    scores = [one.score for one in group.readable]
    spread = max(scores) - min(scores)
    if not spread:
        return "tied"
    # 0.4 - 0.3 is a little more than 0.1, and must not count as more.
    return "small_spread" if spread <= recipe.min_spread * (1 + SAME) else None


def _best(
    group: Candidates, values: Sequence[float], recipe: PairsRecipe, seed: int
) -> tuple[Readable, float, int] | None:
    """The best output that may be chosen, its value, and how many others are as good; None: none may be."""
    least = recipe.min_chosen_score
    good = [
        (value, one)
        for value, one in zip(values, group.readable, strict=True)
        if least is None or one.score >= least
    ]
    if not good:
        return None
    best = max(value for value, _ in good)
    equal = [one for value, one in good if value >= best - SAME]
    return _one_of(equal, recipe, f"chosen {seed} {group.id}"), best, len(equal) - 1


def _best_against_broken(group: Candidates, rho: float, recipe: PairsRecipe, seed: int) -> Pick | None:
    """The best readable output against a broken one; None where there are not both."""
    values = controlled(group.normal_scores, group.normal_lengths, rho)
    best = _best(group, values, recipe, seed)
    if best is None:
        return None
    chosen, value, ties = best
    # The same text can be both: whole, and cut off by the token limit just where it ended.
    broken = [one for one in group.broken if one.text != chosen.text]
    if not broken:
        return None
    rejected = _one_of(broken, recipe, f"broken {seed} {group.id}")
    return Pick(chosen, rejected, value, None, ties, len(broken) - 1)


T = TypeVar("T", Readable, Broken)


def _one_of(equal: Sequence[T], recipe: PairsRecipe, draw: str) -> T:
    """One of several that are equally good, by the recipe's rule."""
    if len(equal) > 1:
        if recipe.ties == "random":
            return Random(draw).choice(equal)
        if recipe.ties == "shortest":
            return min(equal, key=lambda one: (one.length, one.index))
    return equal[0]


def _draw_order(id: str, seed: int) -> tuple[float, str]:
    """Sorts instructions as a shuffle does, but by what each one is."""
    return Random(f"order {seed} {id}").random(), id
