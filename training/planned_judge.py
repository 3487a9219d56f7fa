"""A judge as a plan sees it: how large it is, how often it is called for a group of responses, and how long a call is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkserve.training.lengths import CHARACTERS_PER_TOKEN
from thinkserve.training.model_size import ModelSize, size_of
from thinkserve.training.recipe import JudgeRecipe

# No text states it; chosen by us.
_JUDGMENT = 400
_PROMPTS = Path(__file__).parent / "judges" / "prompts"


@dataclass(frozen=True, slots=True)
class PlannedJudge:
    """What a judge takes."""

    recipe: JudgeRecipe
    size: ModelSize | None
    """None: a function, which has none."""
    prompt: float
    """Tokens of an LLM's prompt, without instruction and responses; 0 for other judges."""
    judgment: float
    """Tokens that an LLM writes; 0 for other judges."""

    @classmethod
    def of(cls, recipe: JudgeRecipe) -> PlannedJudge:
        """Look at a recipe's judge; its template is read, nothing is downloaded."""
        if recipe.kind == "function" or recipe.model is None:
            return cls(recipe, None, 0, 0)
        if recipe.kind == "reward-model":
            return cls(recipe, size_of(recipe.model, recipe.revision), 0, 0)
        file = Path(recipe.template) if recipe.template else _PROMPTS / f"{recipe.kind}.txt"
        prompt = len(file.read_text(encoding="utf-8")) / CHARACTERS_PER_TOKEN
        return cls(recipe, size_of(recipe.model.partition("#")[2]), prompt, min(_JUDGMENT, recipe.max_tokens))

    @property
    def is_llm(self) -> bool:
        """Whether it is served elsewhere."""
        return self.recipe.kind in ("pairwise", "pointwise")

    @property
    def responses(self) -> int:
        """In a call."""
        return 2 if self.recipe.kind == "pairwise" else 1

    def calls(self, groups: Sequence[int]) -> int:
        """Calls for groups of so many responses each: one a response, or one for each pair in both orders."""
        if self.recipe.kind == "pairwise":
            return sum(n * (n - 1) for n in groups)
        return sum(groups)
