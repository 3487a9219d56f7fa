"""An LLM that compares the responses to an instruction two by two, in the manner of the Self-Taught Evaluator.

Every pair is shown in both orders, `n * (n - 1)` calls for n different responses; the judge reasons, and ends with `[[A]]` or
`[[B]]`. The verdicts of a group become one score a response by the Bradley-Terry model (paper, section 2; draft, App. B).

The built-in prompt, `prompts/pairwise.txt`, is in our words, and follows the pair format of MT-Bench (Zheng et al., arXiv
2306.05685) that the Self-Taught Evaluator (Wang et al., arXiv 2408.02666) was trained on: what is asked for, then
`[User Question]` and the answers of the assistants A and B between their marks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from thinkserve.errors import UsageError
from thinkserve.eval.arena.verdict import last_mark
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response
from thinkserve.training.judges.bradley_terry import bradley_terry
from thinkserve.training.judges.collect import REASONS
from thinkserve.training.judges.hearing import Case, Heard, Tally, hear
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.llm import GAME, LlmJudge, Patience, Question, open_llm
from thinkserve.training.judges.prompt import JudgePrompt, load_prompt
from thinkserve.training.recipe import JudgeRecipe

PLACES = ("instruction", "response_a", "response_b")
TIE = "C"

_PREFERENCES = {"A": 1.0, "B": 0.0, TIE: 0.5}
# Some judges escape brackets, or set the letter in bold.
_VERDICT = re.compile(
    r"\\?\[\\?\[[\s*]*(?:(?:assistant|response|answer)\s+)?(A|B|C|tie)[\s*]*\\?\]\\?\]", re.IGNORECASE
)


class PairwiseProtocol:
    """Asks which of two responses is better; the first one is shown as A.

    Args:
        prompt: with `PLACES`.
        settings: of the judge's requests.
    """

    def __init__(self, prompt: JudgePrompt, settings: Mapping[str, Any]) -> None:
        self._prompt, self._settings = prompt, dict(settings)

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Prompt and settings."""
        return {"protocol": "self-taught-evaluator", "prompt": self._prompt.text, "settings": self._settings}

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """One for each order, which is told by the order of the responses."""
        return (GAME,)

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What the judge is asked; identical responses are a tie without it."""
        if response == baseline:
            return Verdict(TIE, 0.5)
        values = {"instruction": instruction.text, "response_a": response, "response_b": baseline}
        return JudgeRequest(({"role": "user", "content": self._prompt.fill(values)},), self._settings)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The last verdict."""
        found = last_mark(reply, _VERDICT)
        if isinstance(found, Unreadable):
            return found
        label = TIE if found.upper() == "TIE" else found.upper()
        return Verdict(label, _PREFERENCES[label])

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """Nothing: the same is asked once more."""
        return None

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """Won by the side that has a response; a tie where neither has one."""
        return Verdict("forfeit", (1 + model_answered - baseline_answered) / 2)


class PairwiseJudge:
    """Scores are log-odds: a response beats another with probability `sigma(score - other score)`; their mean is 0.

    A response that no readable verdict is about has none. Identical responses are one player, and get one score. A tie is
    half a win for each side, where the draft drops it: that two responses are equally good is known then, too.

    Args:
        llm: with a `PairwiseProtocol`.
        prior: of the Bradley-Terry model, above 0.
    """

    def __init__(self, llm: LlmJudge, prior: float) -> None:
        self._llm, self._prior = llm, prior
        self._tally = Tally()
        self._pairs = self._contradictory = self._decided = self._first = 0

    @property
    def name(self) -> str:
        """That of the LLM."""
        return self._llm.name

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Those of the verdicts, and the prior."""
        return {"kind": "pairwise", "prior": self._prior, **self._llm.configuration}

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Calls and tokens; contradictory pairs among those that were decided in both orders; how often the first won.

        `first_preferred` is the share of decided battles that the response shown first won; without a position bias it
        is 0.5 (each pair is shown in both orders). None where nothing was decided.
        """
        return {
            **self._tally.numbers,
            "pairs": self._pairs,
            "contradictory_pairs": self._contradictory,
            "first_preferred": self._first / self._decided if self._decided else None,
        }

    async def score(self, groups: Sequence[Group]) -> AsyncGenerator[GroupScores, None]:
        """Score all groups, each as soon as its battles are decided.

        Raises:
            ThinkserveError: the judge is down or refuses all that is asked; what it said is kept.
        """
        async with aclosing(hear(self._llm, map(_case, groups), self._tally)) as hearing:
            async for heard in hearing:
                yield self._scored(heard)

    def _scored(self, heard: Heard) -> GroupScores:
        group = heard.case.group
        players = list(dict.fromkeys(group.responses))
        battles = dict(zip(permutations(range(len(players)), 2), heard.judgments, strict=True))
        wins = np.zeros((len(players), len(players)))
        for (first, second), preference in _preferences(battles):
            wins[first, second] += preference
            wins[second, first] += 1 - preference
        met = wins + wins.T
        known = [len(players) == 1 or bool(row.any()) for row in met]
        fitted = iter(bradley_terry(wins[np.ix_(known, known)], self._prior).tolist())
        scores = [next(fitted) if one else None for one in known]
        places = [players.index(response) for response in group.responses]
        details = {
            "wins": [float(wins[place].sum()) for place in places],
            "battles": [float(met[place].sum()) for place in places],
            **self._bias(battles),
            "unscored": dict(
                Counter(judgment.failure for judgment in battles.values() if not judgment.verdict)
            ),
            REASONS: [_reason(battles, place) for place in places if scores[place] is None],
        }
        return GroupScores(group.id, tuple(scores[place] for place in places), details)

    def _bias(self, battles: Mapping[tuple[int, int], Judgment]) -> Mapping[str, int]:
        """Count contradictions and wins of whoever was shown first, for this group and for all."""
        decided = {battle: preference for battle, preference in _preferences(battles) if preference != 0.5}
        pairs = [(m, n) for m, n in decided if m < n and (n, m) in decided]
        # The same verdict in both orders: A and A, or B and B.
        contradictory = sum(decided[m, n] == decided[n, m] for m, n in pairs)
        first = sum(preference == 1.0 for preference in decided.values())
        self._pairs += len(pairs)
        self._contradictory += contradictory
        self._decided += len(decided)
        self._first += first
        return {"decided": len(decided), "first_preferred": first, "contradictory": contradictory}


def protocol_of(recipe: JudgeRecipe) -> PairwiseProtocol:
    """How the LLM of a recipe is asked.

    Raises:
        UsageError: the prompt or the prior of the recipe is wrong.
    """
    if not 0 < recipe.prior < float("inf"):
        raise UsageError(
            f"judge.prior {recipe.prior:g}: must be above 0, or a response that won all its battles has no finite score"
        )
    prompt = load_prompt(recipe.template, "pairwise.txt", _VERDICT, places=PLACES)
    return PairwiseProtocol(prompt, {"temperature": recipe.temperature, "max_tokens": recipe.max_tokens})


@asynccontextmanager
async def open_pairwise(
    recipe: JudgeRecipe, *, cache: Path, seed: int = 0, patience: Patience | None = None
) -> AsyncIterator[PairwiseJudge]:
    """Open the judge of a recipe of kind `pairwise`.

    Args:
        recipe: of the judge.
        cache: a folder for what the LLM said; what is there already is not asked again.
        seed: of the waiting between retries; nothing else is random here.
        patience: with a judge that is down; None: ten minutes.

    Raises:
        UsageError: the model, the prompt or the prior of the recipe is wrong.
    """
    protocol = protocol_of(recipe)
    async with open_llm(recipe, protocol, cache=cache, seed=seed, patience=patience or Patience()) as llm:
        yield PairwiseJudge(llm, recipe.prior)


def _case(group: Group) -> Case:
    instruction = Instruction(group.id, group.instruction)
    pairs = permutations(dict.fromkeys(group.responses), 2)
    return Case(group, [Question(instruction, first, second) for first, second in pairs])


def _reason(battles: Mapping[tuple[int, int], Judgment], player: int) -> str:
    """Why nothing is known of a player: what most often became of its battles."""
    failures = Counter(judgment.failure for battle, judgment in battles.items() if player in battle)
    return f"no battle was decided ({failures.most_common(1)[0][0]})"


def _preferences(
    battles: Mapping[tuple[int, int], Judgment],
) -> Iterator[tuple[tuple[int, int], float]]:
    """The battles that were decided, with how far the first is preferred."""
    for battle, judgment in battles.items():
        if judgment.verdict is not None:
            yield battle, judgment.verdict.preference
