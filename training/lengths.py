"""How long instructions, thoughts and responses are taken to be when a run is planned, and why."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from thinkserve.thoughts import ThoughtFormat
from thinkserve.training.recipe import Arm, Recipe

CHARACTERS_PER_TOKEN = 4
# The lengths of the untrained model's outputs in tables 3 and 5 of the draft, in characters: the specific prompt's
# thoughts fall from 2,125 to about 1,500, its responses have 1,914, direct ones 2,875.
_THOUGHT, _RESPONSE, _DIRECT = 1500, 1900, 2900
# No text states it; chosen by us.
_INSTRUCTION = 200
_POCKET_TASKS = 200


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens."""

    instruction: float
    thought_prompt: float
    """What the thought prompt adds to the instruction."""
    thought: float
    """The marker included."""
    response: float
    direct_response: float
    source: str
    """For readers: where the lengths are from."""

    def prompt(self, arm: Arm) -> float:
        """What the model reads."""
        return self.instruction + (self.thought_prompt if arm == "thought" else 0.0)

    def output(self, arm: Arm, most: int) -> float:
        """What it writes, cut at a limit."""
        return min(most, self.thought + self.response if arm == "thought" else self.direct_response)

    def judged(self, arm: Arm, most: int) -> float:
        """The response that a judge reads."""
        return min(most, self.response if arm == "thought" else self.direct_response)


def lengths_of(recipe: Recipe, format: ThoughtFormat) -> Lengths:
    """What a recipe's lengths are taken to be."""
    if recipe.prompts.source == "pocket":
        return _pocket()
    prompt = len(format.thought_prompt("")) / CHARACTERS_PER_TOKEN if format.prompt else 0.0
    return Lengths(
        instruction=_INSTRUCTION,
        thought_prompt=prompt,
        thought=_THOUGHT / CHARACTERS_PER_TOKEN,
        response=_RESPONSE / CHARACTERS_PER_TOKEN,
        direct_response=_DIRECT / CHARACTERS_PER_TOKEN,
        source=f"{CHARACTERS_PER_TOKEN} characters a token, by the paper's draft; instructions a guess",
    )


def _pocket() -> Lengths:
    """Those of the world's right answers; nearly every character is a token, the thought prompt is one."""
    from thinkserve.training.pocket.world import draw_distinct

    tasks = draw_distinct(0, _POCKET_TASKS)
    response = mean(len(task.answer) for task in tasks)
    return Lengths(
        instruction=mean(len(task.instruction) for task in tasks),
        thought_prompt=1,
        thought=mean(len(task.scratchpad) for task in tasks) + 1,
        response=response,
        direct_response=response,
        source=f"right answers to {_POCKET_TASKS} tasks of the pocket world",
    )
