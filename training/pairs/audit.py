"""What was counted in making pairs: all that `pairs.json` says, and what the report draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, get_args

from thinkserve.eval.instruction import Instruction
from thinkserve.training.pairs.candidates import Broken, Candidates, Readable
from thinkserve.training.pairs.examples import examples
from thinkserve.training.pairs.histogram import Bins, bins_of
from thinkserve.training.pairs.selection import Pick, Reason, Selection
from thinkserve.training.pairs.tuning import Tuning
from thinkserve.training.recipe import Recipe
from thinkserve.training.records import CutOutput, OutputRecord
from thinkserve.training.report.pair_histograms import number

SCHEMA = "thinkserve.pairs/1"


@dataclass(frozen=True, slots=True)
class Made:
    """Pairs, and what they were made of: all in the order of the instructions."""

    instructions: Sequence[Instruction]
    outputs: Sequence[OutputRecord]
    groups: Sequence[Candidates]
    tuning: Tuning


def audit(made: Made, recipe: Recipe, seed: int) -> dict[str, Any]:
    """The statistics of pairs, for a file.

    Args:
        made: the pairs.
        recipe: of the run.
        seed: of which pairs are shown as examples.
    """
    tuning = made.tuning
    counts = _counts(made)
    return {
        "schema": SCHEMA,
        "settings": asdict(recipe.pairs),
        "k": recipe.sample.k,
        "counts": counts,
        "no_pair": _reasons(tuning.selection),
        "rho": tuning.taken.rho,
        "rho_reached": tuning.taken.reached,
        "rho_table": [{**asdict(step), "reached": step.reached} for step in tuning.steps],
        "means": _means(made),
        "histograms": {
            "score": _histograms(made, lambda one: one.score),
            "length": _histograms(made, lambda one: one.length),
        },
        "warnings": _warnings(tuning, counts, recipe),
        "examples": examples(made.instructions, made.outputs, tuning.selection.picks, seed),
    }


def _counts(made: Made) -> dict[str, Any]:
    selection = made.tuning.selection
    pairs = selection.pairs
    broken = sum(isinstance(pick.rejected, Broken) for pick in pairs)
    problems = Counter(cut.problem for output in made.outputs for cut in output.outputs)
    return {
        "instructions": len(made.groups),
        "outputs": sum(problems.values()),
        "broken": {problem: n for problem, n in sorted(problems.items(), key=str) if problem is not None},
        "unscored": sum(group.unscored for group in made.groups),
        "duplicates": sum(group.duplicates for group in made.groups),
        "pairs": len(pairs),
        "broken_pairs": broken,
        "broken_share": broken / len(pairs) if pairs else None,
        "broken_beyond_cap": selection.beyond_cap,
        "chosen_ties": sum(pick.chosen_ties > 0 for pick in pairs),
        "rejected_ties": sum(pick.rejected_ties > 0 for pick in pairs if isinstance(pick.rejected, Readable)),
        # Length control may set a short response above one that the judge liked better.
        "chosen_scored_lower": sum(
            chosen.score < rejected.score for chosen, rejected in selection.readable_pairs
        ),
    }


def _reasons(selection: Selection) -> dict[str, int]:
    found = Counter(pick for pick in selection.picks if not isinstance(pick, Pick))
    return {reason: found[reason] for reason in get_args(Reason) if found[reason]}


def _means(made: Made) -> dict[str, Any]:
    """Means over the pairs whose rejected output is readable; those of thoughts in characters and in tokens."""
    chosen: list[CutOutput] = []
    rejected: list[CutOutput] = []
    values: list[float] = []
    for output, pick in zip(made.outputs, made.tuning.selection.picks, strict=True):
        if isinstance(pick, Pick) and pick.rejected_value is not None:
            chosen.append(output.outputs[pick.chosen.index])
            rejected.append(output.outputs[pick.rejected.index])
            values.append(pick.chosen_value - pick.rejected_value)
    taken = made.tuning.taken
    return {
        "score_margin": taken.score_margin,
        "value_margin": _mean(values),
        "chosen_length": taken.chosen_length,
        "rejected_length": taken.rejected_length,
        "chosen_thought_characters": _mean(len(one.thought) for one in chosen),
        "rejected_thought_characters": _mean(len(one.thought) for one in rejected),
        "chosen_thought_tokens": _mean(one.thought_tokens for one in chosen),
        "rejected_thought_tokens": _mean(one.thought_tokens for one in rejected),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def _histograms(made: Made, of: Callable[[Readable], float]) -> dict[str, Any]:
    every = [of(one) for group in made.groups for one in group.readable]
    bins = bins_of(every)
    return {
        "edges": bins.edges,
        "beyond": [
            any(value < bins.edges[0] for value in every),
            any(value > bins.edges[-1] for value in every),
        ],
        "all": bins.counted(every),
        "uncontrolled": _sides(made.tuning.uncontrolled, bins, of),
        "controlled": _sides(made.tuning.selection, bins, of),
    }


def _sides(selection: Selection, bins: Bins, of: Callable[[Readable], float]) -> dict[str, Any]:
    pairs = selection.readable_pairs
    return {
        "chosen": bins.counted([of(chosen) for chosen, _ in pairs]),
        "rejected": bins.counted([of(rejected) for _, rejected in pairs]),
    }


def _warnings(tuning: Tuning, counts: Mapping[str, Any], recipe: Recipe) -> list[str]:
    found = []
    taken, pairs = tuning.taken, counts["pairs"]
    if recipe.pairs.rho == "auto" and not taken.reached:
        found.append(
            f"At rho {taken.rho:g}, the last of pairs.rho_steps, chosen responses are still longer than rejected ones, by "
            f"{number(taken.longer)} {recipe.pairs.length} of {number(taken.chosen_length)} in the mean; add larger steps "
            "to control length."
        )
    if pairs < recipe.dpo.batch:
        found.append(
            f"{pairs:,} pairs do not fill one optimizer step of {recipe.dpo.batch:,} (dpo.batch); give more instructions "
            "(prompts.per_iteration)."
        )
    return found
