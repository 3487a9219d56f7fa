"""How much length must count: the smallest weight at which chosen responses are not longer than rejected ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from thinkserve.errors import UsageError
from thinkserve.training.pairs.candidates import Candidates
from thinkserve.training.pairs.selection import Pick, Reason, Selection, select
from thinkserve.training.recipe import PairsRecipe


@dataclass(frozen=True, slots=True)
class Step:
    """What one weight of length leads to. Means are over the pairs whose rejected output is readable."""

    rho: float
    pairs: int
    chosen_length: float | None
    rejected_length: float | None
    score_margin: float | None
    """Of the scores as the judge gave them; None: there is no such pair."""
    changed: int
    """Instructions with another pair, or another reason for none, than without length control."""

    @property
    def longer(self) -> float:
        """By how much chosen responses are longer than rejected ones on average; 0 where there is no such pair."""
        if self.chosen_length is None or self.rejected_length is None:
            return 0.0
        return self.chosen_length - self.rejected_length

    @property
    def reached(self) -> bool:
        """Whether chosen responses are not longer than rejected ones on average."""
        return self.longer <= 0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The weight that was taken, and what led to it."""

    steps: tuple[Step, ...]
    """Of all weights that were tried, the smallest first; 0 is always among them."""
    taken: Step
    selection: Selection
    """At that weight."""
    uncontrolled: Selection
    """At weight 0."""


def tune(groups: Sequence[Candidates], recipe: PairsRecipe, seed: int) -> Tuning:
    """Select pairs at the recipe's rho, or at the smallest of its steps that reaches the aim (else at the last).

    Raises:
        UsageError: rho is `auto`, and there are no steps.
    """
    tried = sorted(set(recipe.rho_steps)) if recipe.rho == "auto" else [float(recipe.rho)]
    if not tried:
        raise UsageError(
            "pairs.rho_steps is empty; give the values that rho: auto may take, such as [0, 0.25, 0.5]"
        )
    selections = {rho: select(groups, rho, recipe, seed) for rho in sorted({0.0, *tried})}
    uncontrolled = selections[0.0]
    steps = {rho: _step(selection, uncontrolled) for rho, selection in selections.items()}
    rho = next((rho for rho in tried if steps[rho].reached), tried[-1])
    return Tuning(tuple(steps.values()), steps[rho], selections[rho], uncontrolled)


def _step(selection: Selection, uncontrolled: Selection) -> Step:
    pairs = selection.readable_pairs
    return Step(
        rho=selection.rho,
        pairs=len(selection.pairs),
        chosen_length=fmean(chosen.length for chosen, _ in pairs) if pairs else None,
        rejected_length=fmean(rejected.length for _, rejected in pairs) if pairs else None,
        score_margin=fmean(chosen.score - rejected.score for chosen, rejected in pairs) if pairs else None,
        changed=sum(
            _sides(pick) != _sides(before)
            for pick, before in zip(selection.picks, uncontrolled.picks, strict=True)
        ),
    )


def _sides(pick: Pick | Reason) -> tuple[int, int] | Reason:
    return (pick.chosen.index, pick.rejected.index) if isinstance(pick, Pick) else pick
