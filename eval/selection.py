"""Which instructions of a bench are asked."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from thinkserve.eval.instruction import Instruction


def select(instructions: Sequence[Instruction], limit: int | None, seed: int) -> tuple[Instruction, ...]:
    """Draw `limit` instructions at random, and keep them in their order; all of them without a limit.

    The first ones would be of one category in most official files. The draw for a smaller limit is not part of the one
    for a larger one.
    """
    if limit is None or limit >= len(instructions):
        return tuple(instructions)
    chosen = Random(seed).sample(range(len(instructions)), limit)
    return tuple(instructions[at] for at in sorted(chosen))
