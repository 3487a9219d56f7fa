"""What a pair can be made of: the readable, scored outputs to an instruction, and its broken ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.training.pairs.length_control import normalized
from thinkserve.training.recipe import PairsRecipe
from thinkserve.training.records import CutOutput, OutputRecord, Problem, SampleRecord, ScoreRecord


@dataclass(frozen=True, slots=True)
class Readable:
    """An output with a response and a score."""

    index: int
    """Among the K outputs; of equal ones, the first's."""
    text: str
    """The raw output, thought included."""
    score: float
    """As the judge gave it; of equal outputs, the mean."""
    length: int
    """Of the response alone, in the recipe's unit."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An output without a readable response."""

    index: int
    text: str
    problem: Problem
    length: int = 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """The outputs to one instruction."""

    id: str
    readable: tuple[Readable, ...]
    """Those with a score."""
    broken: tuple[Broken, ...]
    unscored: int
    """Readable ones without a score, which are neither chosen nor rejected."""
    duplicates: int
    """Outputs that were left out since an equal one is there."""
    normal_scores: tuple[float, ...]
    normal_lengths: tuple[float, ...]
    """N over `readable`, in its order."""


def candidates_of(
    sample: SampleRecord, cut: OutputRecord, scored: ScoreRecord, recipe: PairsRecipe, path: Path
) -> Candidates:
    """Bring together what is known of the outputs to one instruction.

    Args:
        sample: the raw texts.
        cut: the same outputs, cut.
        scored: their scores.
        recipe: says how lengths are counted, and whether equal outputs are merged.
        path: of the scores, for errors.

    Raises:
        UsageError: the three do not have equally many outputs, or a score is not finite.
    """
    if not len(sample.outputs) == len(cut.outputs) == len(scored.scores):
        raise UsageError(
            f"{path}: instruction {sample.id} has {len(sample.outputs)} samples, {len(cut.outputs)} cut outputs and "
            f"{len(scored.scores)} scores; the files are not of one run, start the iteration again"
        )
    readable: list[Readable] = []
    broken: list[Broken] = []
    unscored = 0
    for index, (raw, output, score) in enumerate(
        zip(sample.outputs, cut.outputs, scored.scores, strict=True)
    ):
        if output.problem is not None:
            broken.append(Broken(index, raw.text, output.problem))
        elif score is None:
            unscored += 1
        elif not isfinite(score):
            raise UsageError(
                f"{path}: instruction {sample.id}: the score of output {index} is {score}; the judge must give finite "
                "numbers or none"
            )
        else:
            readable.append(Readable(index, raw.text, score, _length(output, recipe.length)))
    merged, merged_broken = tuple(readable), tuple(broken)
    if recipe.duplicates == "merge":
        merged, merged_broken = _merged(readable), _first_of_each(broken)
    return Candidates(
        id=sample.id,
        readable=merged,
        broken=merged_broken,
        unscored=unscored,
        duplicates=len(readable) - len(merged) + len(broken) - len(merged_broken),
        normal_scores=normalized([one.score for one in merged]),
        normal_lengths=normalized([one.length for one in merged]),
    )


def _length(output: CutOutput, unit: Literal["characters", "tokens"]) -> int:
    return len(output.response) if unit == "characters" else output.response_tokens


def _merged(found: Iterable[Readable]) -> tuple[Readable, ...]:
    """Equal raw outputs as one. A judge may score them differently: none of its scores is better than the others."""
    groups: dict[str, list[Readable]] = {}
    for one in found:
        groups.setdefault(one.text, []).append(one)
    return tuple(
        Readable(group[0].index, text, _mean([one.score for one in group]), group[0].length)
        for text, group in groups.items()
    )


def _mean(scores: list[float]) -> float:
    # The mean of equal numbers may be rounded to just beside them, and would no longer tie with another output's.
    return scores[0] if len(set(scores)) == 1 else fmean(scores)


def _first_of_each(found: Iterable[Broken]) -> tuple[Broken, ...]:
    first: dict[str, Broken] = {}
    for one in found:
        first.setdefault(one.text, one)
    return tuple(first.values())
