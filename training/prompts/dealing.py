"""Who gets which instruction: the held-out parts first, then the iterations in turn, nothing twice.

So the part of an iteration is the same however many iterations there are, and a run can be given more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import islice
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction
from thinkserve.training.recipe import Recipe

Part = int | Literal["validation", "evaluation"]
"""An iteration, from 1, or a held-out part."""
Parts = Mapping[Part, Sequence[Instruction]]


def sizes_of(recipe: Recipe) -> dict[Part, int]:
    """How many instructions each part has, in the order in which they are dealt."""
    prompts = recipe.prompts
    iterations = range(1, recipe.iterations + 1)
    return {
        "validation": prompts.validation,
        "evaluation": prompts.evaluation,
        **dict.fromkeys(iterations, prompts.per_iteration),
    }


def shuffled(instructions: Sequence[Instruction], seed: int) -> list[Instruction]:
    """In an order that hangs on the seed and on each instruction alone, on every machine."""
    return sorted(instructions, key=lambda one: sha256(f"{seed}:{one.id}".encode()).digest())


def deal(
    instructions: Sequence[Instruction],
    recipe: Recipe,
    *,
    evaluation: Sequence[Instruction] | None = None,
    counted: str = "",
) -> Parts:
    """Deal instructions out.

    Args:
        instructions: no two of which are the same.
        recipe: of the run.
        evaluation: the part that is measured on, where it comes from elsewhere; None: it is dealt too.
        counted: how many there were and what became of them, for the error.

    Raises:
        UsageError: there are too few.
    """
    sizes = sizes_of(recipe)
    if evaluation is not None:
        del sizes["evaluation"]
    if len(instructions) < sum(sizes.values()):
        raise _too_few(len(instructions), recipe, sizes, counted)
    rest = iter(shuffled(instructions, recipe.seed))
    parts: dict[Part, Sequence[Instruction]] = {
        part: tuple(islice(rest, size)) for part, size in sizes.items()
    }
    return parts if evaluation is None else {"evaluation": evaluation, **parts}


def deal_evaluation(
    instructions: Sequence[Instruction], recipe: Recipe, counted: str = ""
) -> tuple[Instruction, ...]:
    """Deal the part that is measured on, from a source of its own.

    Raises:
        UsageError: there are too few.
    """
    wanted = recipe.prompts.evaluation
    if len(instructions) < wanted:
        raise UsageError(
            f"prompts.evaluation_source {recipe.prompts.evaluation_source!r} has {len(instructions):,} instructions left "
            f"({counted}), and prompts.evaluation wants {wanted:,}; lower it to {len(instructions)}, or give more"
        )
    return tuple(shuffled(instructions, recipe.seed)[:wanted])


def _too_few(have: int, recipe: Recipe, sizes: Mapping[Part, int], counted: str) -> UsageError:
    held_out = {f"prompts.{part}": size for part, size in sizes.items() if isinstance(part, str)}
    wants = [f"{key} {size:,}" for key, size in held_out.items()]
    wants.append(f"{recipe.iterations} iterations x prompts.per_iteration {recipe.prompts.per_iteration:,}")
    most = (have - sum(held_out.values())) // max(recipe.iterations, 1)
    lower = f"prompts.per_iteration to {most} or less" if most > 0 else f"{', '.join(held_out)} as well"
    return UsageError(
        f"prompts.source {recipe.prompts.source!r} has {have:,} instructions left ({counted}), and the recipe wants "
        f"{sum(sizes.values()):,} ({' + '.join(wants)}); lower {lower}, or give more instructions"
    )
