"""What is left out of a source before anything is dealt: too long, there before, in a benchmark; and the count of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkserve.eval.instruction import Instruction
from thinkserve.training.prompts.contamination import Contaminated, counts_of, find_contaminated
from thinkserve.training.prompts.duplicates import find_duplicates
from thinkserve.training.prompts.source import Source
from thinkserve.training.recipe import PromptsRecipe

PLACES = 10
DUPLICATES_SHOWN = 20
CONTAMINATED_SHOWN = 100
CHARACTERS_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What may be dealt."""

    instructions: tuple[Instruction, ...]
    """In the order of the source."""
    counts: Mapping[str, int]
    """How many were read, how many each step left out, and how many are left."""
    details: Mapping[str, Any]
    """Examples of what was left out, and the counts by bench."""

    def __str__(self) -> str:
        steps = {"bad_lines": "bad lines", "too_long": "too long", "duplicates": "duplicates"}
        words = [f"{self.counts[key]:,} {name}" for key, name in steps.items()]
        return (
            f"{self.counts['read']:,} less {', '.join(words)} and {self.counts['contaminated']:,} of benches"
        )


def clean(source: Source, recipe: PromptsRecipe, benches: Mapping[str, Sequence[Instruction]]) -> Cleaned:
    """Leave out what must not be trained on.

    Args:
        source: what was read.
        recipe: says what is too long, and what counts as the same.
        benches: by name, instructions that must not be among those that are left.
    """
    short = [one for one in source.instructions if len(one.text) <= recipe.longest]
    duplicates = find_duplicates([one.text for one in short], recipe.near_duplicates)
    repeated = {one.number for one in duplicates}
    distinct = [one for number, one in enumerate(short) if number not in repeated]
    contaminated = find_contaminated([one.text for one in distinct], benches, recipe.near_duplicates)
    known = {one.number for one in contaminated}
    left = tuple(one for number, one in enumerate(distinct) if number not in known)
    kinds = Counter(one.kind for one in duplicates)
    counts = {
        "read": len(source.instructions) + len(source.bad),
        "bad_lines": len(source.bad),
        "too_long": len(source.instructions) - len(short),
        "duplicates": len(duplicates),
        "contaminated": len(known),
        "left": len(left),
    }
    details = {
        "bad_lines": list(source.bad[:PLACES]),
        "duplicates": {
            "exact": kinds["exact"],
            "near": kinds["near"],
            "examples": [
                {"kind": one.kind, "text": _shown(short[one.number]), "same_as": _shown(short[one.of])}
                for one in duplicates[:DUPLICATES_SHOWN]
            ],
        },
        "contamination": {
            "benches": counts_of(contaminated, benches),
            "examples": [_example(one, distinct) for one in contaminated[:CONTAMINATED_SHOWN]],
        },
    }
    return Cleaned(left, counts, details)


def _example(one: Contaminated, instructions: Sequence[Instruction]) -> dict[str, str]:
    return {
        "id": instructions[one.number].id,
        "kind": one.kind,
        "text": _shown(instructions[one.number]),
        "bench": one.bench,
        "bench_id": one.instruction.id,
        "bench_text": _shown(one.instruction),
    }


def _shown(instruction: Instruction) -> str:
    text = instruction.text
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]}..."
