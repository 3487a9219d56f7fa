"""Opens the judge that a recipe asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from thinkserve.training.judges.judge import Judge
from thinkserve.training.recipe import JudgeRecipe


@asynccontextmanager
async def open_judge(recipe: JudgeRecipe, *, cache: Path, seed: int = 0) -> AsyncIterator[Judge]:
    """A judge, ready to score until the context ends.

    Args:
        recipe: which one.
        cache: a folder for what an LLM judge said, so that nothing is paid for twice.
        seed: of an LLM judge.

    Raises:
        UsageError: the recipe's judge cannot be had; names the key, the value and what to do.
    """
    # Imported where they are used: a reward model needs torch, the others do not.
    if recipe.kind == "function":
        from thinkserve.training.judges.function import FunctionJudge

        yield FunctionJudge(recipe)
    elif recipe.kind == "reward-model":
        from thinkserve.training.judges.reward_model import open_reward_model

        async with open_reward_model(recipe) as reward_model:
            yield reward_model
    elif recipe.kind == "pairwise":
        from thinkserve.training.judges.pairwise import open_pairwise

        async with open_pairwise(recipe, cache=cache, seed=seed) as pairwise:
            yield pairwise
    else:
        from thinkserve.training.judges.pointwise import open_pointwise

        async with open_pointwise(recipe, cache=cache, seed=seed) as pointwise:
            yield pointwise
