"""A few pairs to read side by side, thought and response apart."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from thinkserve.eval.instruction import Instruction
from thinkserve.training.pairs.candidates import Broken, Readable
from thinkserve.training.pairs.selection import Pick, Reason
from thinkserve.training.records import CutOutput, OutputRecord

EXAMPLES = 8
"""So many pairs."""
BROKEN_EXAMPLES = 2
"""So many of them with a broken rejected output, where there are such."""
LONGEST = 8_000
"""Characters that are kept of a text."""


def examples(
    instructions: Sequence[Instruction],
    outputs: Sequence[OutputRecord],
    picks: Sequence[Pick | Reason],
    seed: int,
) -> list[dict[str, Any]]:
    """Pairs drawn by a seed, those with a broken output last.

    Args:
        instructions: all of the iteration.
        outputs: to each of them.
        picks: of each of them.
        seed: of the draw.
    """
    pairs = [(number, pick) for number, pick in enumerate(picks) if isinstance(pick, Pick)]
    Random(seed).shuffle(pairs)
    broken = [pair for pair in pairs if isinstance(pair[1].rejected, Broken)][:BROKEN_EXAMPLES]
    readable = [pair for pair in pairs if isinstance(pair[1].rejected, Readable)]
    drawn = [*readable[: EXAMPLES - len(broken)], *broken]
    return [_example(instructions[number], outputs[number].outputs, pick) for number, pick in drawn]


def _example(instruction: Instruction, cuts: Sequence[CutOutput], pick: Pick) -> dict[str, Any]:
    rejected = pick.rejected
    score = rejected.score if isinstance(rejected, Readable) else None
    return {
        "id": instruction.id,
        "instruction": _text(instruction.text),
        "categories": dict(instruction.categories),
        "chosen": {
            **_side(cuts[pick.chosen.index], pick.chosen),
            "score": pick.chosen.score,
            "value": pick.chosen_value,
        },
        "rejected": {**_side(cuts[rejected.index], rejected), "score": score, "value": pick.rejected_value},
    }


def _side(cut: CutOutput, output: Readable | Broken) -> dict[str, Any]:
    return {
        "index": output.index,
        "thought": _text(cut.thought),
        "response": _text(cut.response),
        "length": output.length,
        "problem": cut.problem,
    }


def _text(text: str) -> dict[str, Any]:
    """The beginning of a text, and how long it is as a whole."""
    return {"text": text[:LONGEST], "characters": len(text)}
