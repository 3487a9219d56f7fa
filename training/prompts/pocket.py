"""Instructions of the pocket world: drawn, so there are always enough, and no two alike.

Those to train on come from the side of the world that may be trained on. Those that are held out are fresh: neither the
pocket bench nor the numbers of the model card nor those by which the recipe was chosen have them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from math import ceil

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.training.pocket.bench import PocketBench
from thinkserve.training.pocket.world import CATEGORIES, draw_distinct
from thinkserve.training.prompts.dealing import Part, Parts, sizes_of
from thinkserve.training.prompts.row import CATEGORY
from thinkserve.training.recipe import Recipe

NAME = "pocket"
# What the model card was measured on: EVALUATION_SEED and the recipe's tasks in pocket/seed.py, which imports torch.
CARD_SEED, CARD_TASKS = 2024, 800
# By these the numbers of the pocket recipe were chosen (learning rate, NLL weight, instructions, iterations).
TUNING_SEED, TUNING_TASKS = 77, 800


def deal_pocket(recipe: Recipe, *, evaluation: Sequence[Instruction] | None = None) -> Parts:
    """Draw all parts.

    Args:
        recipe: of the run.
        evaluation: the part that is measured on, where it comes from elsewhere; None: it is drawn too.

    Raises:
        UsageError: the world has not so many.
    """
    if evaluation is None:
        evaluation = draw_evaluation(recipe)
    measured = {one.text for one in evaluation}
    sizes = sizes_of(recipe)
    validation = _draw(recipe, "validation", sizes["validation"], seen_before() | measured, held_out=True)
    count = recipe.prompts.per_iteration
    training = _draw(recipe, "training", recipe.iterations * count, measured, held_out=False)
    iterations: dict[Part, Sequence[Instruction]] = {
        number: training[(number - 1) * count : number * count] for number in range(1, recipe.iterations + 1)
    }
    return {"validation": validation, "evaluation": evaluation, **iterations}


def draw_evaluation(recipe: Recipe) -> tuple[Instruction, ...]:
    """Draw the part that is measured on.

    Raises:
        UsageError: the world has not so many.
    """
    return _draw(recipe, "evaluation", recipe.prompts.evaluation, seen_before(), held_out=True)


def seen_before() -> set[str]:
    """The held-out instructions that settings may have been chosen by."""
    drawn = ((CARD_SEED, CARD_TASKS), (TUNING_SEED, TUNING_TASKS))
    tasks = (task for seed, count in drawn for task in draw_distinct(seed, count, held_out=True))
    return {task.instruction for task in tasks} | {one.text for one in PocketBench().instructions}


def _draw(
    recipe: Recipe, purpose: str, count: int, excluded: Collection[str], *, held_out: bool
) -> tuple[Instruction, ...]:
    """Draw instructions, the categories in turn; the first ones are the same for any count."""
    # A seed for each purpose that no seed of a recipe comes near: with seed + 1, a run would train on its neighbour's.
    seed = int.from_bytes(sha256(f"{purpose} of seed {recipe.seed}".encode()).digest()[:8], "big")
    drawn, short = count, 0
    while True:
        drawn += short * len(CATEGORIES)
        try:
            tasks = draw_distinct(seed, drawn, held_out=held_out)
        except ValueError as exc:
            key = "per_iteration" if purpose == "training" else purpose
            raise UsageError(f"the pocket world has too few instructions for prompts.{key}: {exc}") from exc
        turns: dict[str, list[str]] = {name: [] for name in CATEGORIES}
        for task in tasks:
            if task.instruction not in excluded:
                turns[task.category].append(task.instruction)
        short = ceil(count / len(CATEGORIES)) - min(map(len, turns.values()))
        if short <= 0 or not count:
            break
    in_turn = (
        (name, text)
        for texts in zip(*turns.values(), strict=False)
        for name, text in zip(turns, texts, strict=True)
    )
    return tuple(
        Instruction(id_of(text), text, {CATEGORY: name}, position)
        for position, (name, text) in zip(range(count), in_turn, strict=False)
    )
