"""The pocket bench: held-out instructions of the pocket world, judged by rule, so that a whole evaluation needs no judge.

The baseline is no model but a writer that is right half of the time (`half-right`) and otherwise wrong in one character,
drawn by the bench's seed: so a win rate means the same for ever, whichever checkpoint is at hand. A model that is always
right has 75 %, one that never is hardly more than 0. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.bench import Compat, JudgeRequest, Reply, Unreadable
from thinkserve.eval.comparison import head_to_head
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.match import Game, Match, Verdict
from thinkserve.eval.scores import Scores
from thinkserve.thoughts import Response
from thinkserve.training.pocket.judge import is_right, score
from thinkserve.training.pocket.world import draw_distinct, solve

INSTRUCTIONS = 200
BASELINE = "half-right"
JUDGE = "rule"
# Drawn in seconds, and more than anybody needs: the standard error of a win rate is 0.4 points at most.
MOST_INSTRUCTIONS = 20_000


class RuleJudge:
    """The bench's protocol: a verdict by rule, so no judge is ever asked.

    The response with more right characters (`judge.score`) is preferred. A label says of both sides, the model's first,
    whether they are exactly right: `right>wrong`, `wrong<wrong`, `right=right` ...
    """

    @property
    def configuration(self) -> Mapping[str, Any]:
        """What a verdict hangs on."""
        return {"protocol": "pocket", "rule": "share of right characters"}

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """One: a rule has no favourite place."""
        return (Game(0, model_first=True),)

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """The verdict.

        Raises:
            UsageError: the instruction is not one of the pocket world's.
        """
        task = solve(instruction.text)
        if task is None:
            raise UsageError(
                f"instruction {instruction.id} ({instruction.text[:60]!r}) is not one of the pocket world's: the rule "
                "judge knows no others"
            )
        ours, theirs = score(task, response), score(task, baseline)
        preference = 0.5 if ours == theirs else float(ours > theirs)
        first, second = ("right" if is_right(task, text) else "wrong" for text in (response, baseline))
        return Verdict(_label(first, second, preference), preference)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """Never a verdict: what a judge said is not asked for here."""
        return Unreadable("no verdict")

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """Nothing."""
        return None

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """A loss for who has no response, even against a wrong one; a tie if neither has."""
        preference = (1 + model_answered - baseline_answered) / 2
        first, second = ("response" if some else "none" for some in (model_answered, baseline_answered))
        return Verdict(_label(first, second, preference), preference)


def _label(first: str, second: str, preference: float) -> str:
    return f"{first}{'<=>'[int(2 * preference)]}{second}"


class PocketBench:
    """Held-out instructions of the pocket world, its categories in turn."""

    name = "pocket"
    official_judge = None
    ensembles = False

    def __init__(self, count: int = INSTRUCTIONS, seed: int = 0) -> None:
        """Draw the instructions; the first ones of a seed are the same for any count.

        Args:
            count: how many.
            seed: of the instructions and of the baseline's answers.

        Raises:
            UsageError: `count` is less than 1, or more than the world has.
        """
        if not 1 <= count <= MOST_INSTRUCTIONS:
            raise UsageError(f"the pocket bench has 1 to {MOST_INSTRUCTIONS} instructions, not {count}")
        self._seed = seed
        self._tasks = draw_distinct(seed, count, held_out=True)
        self.instructions: Sequence[Instruction] = tuple(
            Instruction(id_of(task.instruction), task.instruction, {"category": task.category}, position)
            for position, task in enumerate(self._tasks)
        )
        self._rule = RuleJudge()

    def baseline_of(self, instruction: Instruction) -> str | None:
        """`half-right`, always."""
        return BASELINE

    def protocol_of(self, judge: str) -> RuleJudge:
        """The rule."""
        return self._rule

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """The answers of `half-right`: of each two instructions of a category one is right, a coin decides which.

        With a coin for each instruction it was right in 41 % of the 200 of seed 0. The coins hang on seed, category and
        turn alone, so a smaller bench has the same answers.
        """
        answers: dict[str, Answer] = {}
        turns: Counter[str] = Counter()
        for instruction, task in zip(self.instructions, self._tasks, strict=True):
            pair, turn = divmod(turns[task.category], 2)
            turns[task.category] += 1
            is_first = Random(f"{BASELINE} {self._seed} {task.category} {pair}").random() < 0.5
            place = Random(f"{BASELINE} {self._seed} {instruction.text}")
            text = task.answer if is_first == (turn == 0) else _one_wrong(place, task.answer)
            answers[instruction.id] = Answer(instruction.id, Response(text))
        return {BASELINE: Answers(BASELINE, answers)}

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Win rates against `half-right`, raw and at equal length, overall and by category.

        `details` has `accuracy`: from model (and its baseline) to the share of exactly right responses, in percent, by
        category and over `all`. Nothing official exists here, so `compat` changes nothing.
        """
        accuracy = {
            model: _accuracy([(m.instruction, m.answer) for m in found]) for model, found in matches.items()
        }
        judged = {m.baseline_model: m for found in matches.values() for m in found}
        for baseline in judged:
            played = {
                m.instruction.id: m
                for found in matches.values()
                for m in found
                if m.baseline_model == baseline
            }
            accuracy[baseline] = _accuracy([(m.instruction, m.baseline) for m in played.values()])
        return Scores(
            bench=self.name,
            judge=JUDGE,
            baseline="+".join(judged),
            compat=compat,
            models={
                model: head_to_head(found, seed=seed, schemes=("category",))
                for model, found in matches.items()
            },
            details={"accuracy": accuracy},
        )


def _accuracy(answered: Sequence[tuple[Instruction, Answer]]) -> dict[str, float]:
    """The share of right responses in percent; an output whose thought never ended is not right."""
    right: dict[str, list[bool]] = {"all": []}
    for instruction, answer in answered:
        found = answer.complete and is_right(instruction.text, answer.response)
        right["all"].append(found)
        right.setdefault(instruction.categories["category"], []).append(found)
    return {name: 100 * sum(some) / len(some) for name, some in right.items() if some}


def _one_wrong(rng: Random, answer: str) -> str:
    """The answer with one letter or digit changed to another one of its kind: as long as it, and near enough to it."""
    at = rng.choice([place for place, char in enumerate(answer) if char.isalnum()])
    kind = next(kind for kind in (ascii_lowercase, ascii_uppercase, digits) if answer[at] in kind)
    return answer[:at] + rng.choice(kind.replace(answer[at], "")) + answer[at + 1 :]
