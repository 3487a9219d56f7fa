"""An LLM that grades each response on its own.

The built-in prompt, `prompts/pointwise.txt`, is in our words; that grades are built up step by step it has from the additive
rubric of Self-Rewarding Language Models (Yuan et al., arXiv 2401.10020).

A grade is a number in double brackets, `[[7]]` or `[[7.5]]`, with or without words before it; `[[7/10]]` only if 10 is the
highest grade. `7/10` without brackets is none: it may be about something in the response.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.eval.arena.verdict import last_mark
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response
from thinkserve.training.judges.collect import REASONS
from thinkserve.training.judges.hearing import Case, Heard, Tally, hear
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.llm import GAME, LlmJudge, Patience, Question, open_llm
from thinkserve.training.judges.prompt import JudgePrompt, load_prompt
from thinkserve.training.recipe import JudgeRecipe

PLACES = ("instruction", "response")
SCALE_PLACES = ("lowest", "highest")
ALONE = Response("")

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
# No two parts of it can take the same white space, so that a response full of it takes no time to search.
_GRADE = re.compile(
    rf"\\?\[\\?\[[\s*]*(?:(?:rating|grade|score)[\s:]*)?({_NUMBER})(?:\s*/\s*({_NUMBER}))?[\s*]*\\?\]\\?\]",
    re.IGNORECASE,
)


class PointwiseProtocol:
    """Asks for the grade of a response. A verdict's label is the grade, its preference the grade's place on the scale.

    Args:
        prompt: with `PLACES`, and perhaps `SCALE_PLACES`.
        scale: lowest and highest grade.
        settings: of the judge's requests.
    """

    def __init__(self, prompt: JudgePrompt, scale: tuple[float, float], settings: Mapping[str, Any]) -> None:
        self._prompt, self._scale, self._settings = prompt, scale, dict(settings)

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Prompt, scale and settings."""
        return {
            "protocol": "grade",
            "prompt": self._prompt.text,
            "scale": list(self._scale),
            "settings": self._settings,
        }

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """One."""
        return (GAME,)

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What the judge is asked; nothing is shown beside the response."""
        lowest, highest = self._scale
        content = self._prompt.fill(
            {"instruction": instruction.text, "response": response},
            {"lowest": f"{lowest:g}", "highest": f"{highest:g}"},
        )
        return JudgeRequest(({"role": "user", "content": content},), self._settings)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The last grade."""
        found = last_mark(reply, _GRADE)
        if isinstance(found, Unreadable):
            return found
        grade, of = found
        lowest, highest = self._scale
        if not lowest <= float(grade) <= highest or (of and float(of) != highest):
            return Unreadable("out of scale")
        return Verdict(grade, (float(grade) - lowest) / (highest - lowest))

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """Nothing: the same is asked once more."""
        return None

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """The lowest grade for no response."""
        return Verdict("forfeit", float(model_answered))


class PointwiseJudge:
    """Scores are the grades; a response without a readable one has none. Identical responses are asked about once.

    Args:
        llm: with a `PointwiseProtocol`.
    """

    def __init__(self, llm: LlmJudge) -> None:
        self._llm = llm
        self._tally = Tally()

    @property
    def name(self) -> str:
        """That of the LLM."""
        return self._llm.name

    @property
    def configuration(self) -> Mapping[str, Any]:
        """That of the grades."""
        return {"kind": "pointwise", **self._llm.configuration}

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Calls, tokens and grades."""
        return self._tally.numbers

    async def score(self, groups: Sequence[Group]) -> AsyncGenerator[GroupScores, None]:
        """Score all groups, each as soon as its grades are there.

        Raises:
            ThinkserveError: the judge is down or refuses all that is asked; what it said is kept.
        """
        async with aclosing(hear(self._llm, map(_case, groups), self._tally)) as hearing:
            async for heard in hearing:
                yield _scored(heard)


def protocol_of(recipe: JudgeRecipe) -> PointwiseProtocol:
    """How the LLM of a recipe is asked.

    Raises:
        UsageError: the prompt or the scale of the recipe is wrong.
    """
    lowest, highest = recipe.scale
    if not -float("inf") < lowest < highest < float("inf"):
        raise UsageError(
            f"judge.scale [{lowest:g}, {highest:g}]: the first must be below the second, and both finite"
        )
    prompt = load_prompt(recipe.template, "pointwise.txt", _GRADE, places=PLACES, optional=SCALE_PLACES)
    settings = {"temperature": recipe.temperature, "max_tokens": recipe.max_tokens}
    return PointwiseProtocol(prompt, (lowest, highest), settings)


@asynccontextmanager
async def open_pointwise(
    recipe: JudgeRecipe, *, cache: Path, seed: int = 0, patience: Patience | None = None
) -> AsyncIterator[PointwiseJudge]:
    """Open the judge of a recipe of kind `pointwise`.

    Args:
        recipe: of the judge.
        cache: a folder for what the LLM said; what is there already is not asked again.
        seed: of the waiting between retries; nothing else is random here.
        patience: with a judge that is down; None: ten minutes.

    Raises:
        UsageError: the model, the prompt or the scale of the recipe is wrong.
    """
    protocol = protocol_of(recipe)
    async with open_llm(recipe, protocol, cache=cache, seed=seed, patience=patience or Patience()) as llm:
        yield PointwiseJudge(llm)


def _case(group: Group) -> Case:
    instruction = Instruction(group.id, group.instruction)
    responses = dict.fromkeys(group.responses)
    return Case(group, [Question(instruction, response, ALONE) for response in responses])


def _scored(heard: Heard) -> GroupScores:
    responses = heard.case.group.responses
    judgments = dict(zip(dict.fromkeys(responses), heard.judgments, strict=True))
    found = [judgments[response] for response in responses]
    scores = tuple(None if one.verdict is None else float(one.verdict.label) for one in found)
    reasons = [f"no grade could be read or had ({one.failure})" for one in found if one.verdict is None]
    return GroupScores(heard.case.group.id, scores, {REASONS: reasons} if reasons else {})
