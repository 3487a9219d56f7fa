"""What the tests of LLM judges share: groups, scripts for `tests.eval.scripted_judge`, and a program that can be killed.

python -m tests.training.llm_judging KIND URL CACHE COUNT   judges COUNT groups, and prints a JSON line a group
"""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from tests.eval.scripted_judge import Action, Asked, Say
from thinkserve.thoughts import Response
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.llm import Patience
from thinkserve.training.judges.pairwise import open_pairwise
from thinkserve.training.judges.pointwise import open_pointwise
from thinkserve.training.recipe import JudgeRecipe

QUICK = Patience(seconds=1.0, back_off=0.02)

_BLOCK = re.compile(r"\[The Start of [^\]]*Answer\]\n(.*?)\n\[The End of", re.DOTALL)


def recipe_of(kind: str, url: str, **changed: object) -> JudgeRecipe:
    """A recipe for a judge at a URL."""
    recipe = JudgeRecipe(kind=kind, model=f"{url}#judge", concurrency=4)  # type: ignore[arg-type]
    return replace(recipe, **changed)  # type: ignore[arg-type]


def group(id: str, *responses: str, instruction: str | None = None) -> Group:
    """A group with these responses."""
    return Group(id, instruction or f"Question {id}?", tuple(map(Response, responses)))


def groups(count: int, k: int) -> list[Group]:
    """Groups of k different responses of different lengths."""
    return [group(str(number), *("x" * (1 + place) for place in range(k))) for number in range(count)]


def shown(asked: Asked) -> list[str]:
    """The responses that a judge is shown, in their order."""
    return _BLOCK.findall(asked.text)


def longer(asked: Asked) -> Action:
    """Prefers the longer of two responses."""
    a, b = shown(asked)
    return Say("Length is all. [[A]]" if len(a) > len(b) else "Length is all. [[B]]")


def length(asked: Asked) -> Action:
    """Grades a response by its length."""
    (response,) = shown(asked)
    return Say(f"Rating: [[{len(response)}]]")


async def scores_of(
    recipe: JudgeRecipe, cache: Path, some: list[Group], patience: Patience = QUICK
) -> dict[str, GroupScores]:
    """One run over some groups."""
    opened = open_pairwise if recipe.kind == "pairwise" else open_pointwise
    async with opened(recipe, cache=cache, seed=0, patience=patience) as judge:
        return {scores.id: scores async for scores in judge.score(some)}


async def _main(kind: str, url: str, cache: str, count: str) -> None:
    found = await scores_of(recipe_of(kind, url), Path(cache), groups(int(count), 3))
    for scores in found.values():
        print(msgspec.json.encode(scores).decode())


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
