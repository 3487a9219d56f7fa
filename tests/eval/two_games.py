"""A tiny protocol for the tests of judging: two games a match, with the order swapped, and one label in the reply."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.eval.answer import Answer
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.stage import Pair
from thinkserve.eval.judging.template import fill
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response

TEMPLATE = "Question: {instruction}\n<A>\n{output_1}\n</A>\n<B>\n{output_2}\n</B>"
MODEL, BASELINE = "model", "baseline"


class TwoGames:
    """`[[A]]`, `[[B]]` or `[[A>>B]]`; a reply without one is asked further if `asks_further`."""

    def __init__(self, *, asks_further: bool = False, settings: Mapping[str, Any] | None = None) -> None:
        self.asks_further = asks_further
        self.settings = {"temperature": 0, "max_tokens": 64} if settings is None else settings

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Template and settings."""
        return {"protocol": "two games", "template": TEMPLATE, "settings": self.settings}

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """The model first, then the baseline."""
        return (Game(0, True), Game(1, False))

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What is asked; identical responses are a tie."""
        if response == baseline:
            return Verdict("A=B", 0.5)
        first, second = (response, baseline) if game.model_first else (baseline, response)
        values = {"instruction": instruction.text, "output_1": first, "output_2": second}
        return JudgeRequest(({"role": "user", "content": fill(TEMPLATE, values)},), self.settings)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The one label of the reply."""
        if not reply.text.strip():
            return Unreadable("empty")
        labels = set(re.findall(r"\[\[(A|B|A>>B)\]\]", reply.text.replace(" ", "")))
        if len(labels) != 1:
            return Unreadable("two verdicts" if labels else "no verdict")
        label = labels.pop()
        return Verdict(label, float(label.startswith("A") == game.model_first), 3 if ">>" in label else 1)

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """The judge is told once to finish."""
        if not self.asks_further or len(request.messages) > 1:
            return None
        said = {"role": "assistant", "content": reply.text}
        more = {"role": "user", "content": "finish with a label"}
        return JudgeRequest((*request.messages, said, more), request.settings)

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """A loss for who did not answer."""
        preference = (1 + model_answered - baseline_answered) / 2
        return Verdict("forfeit", preference)


def pairs(count: int, *, unanswered: Sequence[int] = ()) -> list[Pair]:
    """Pairs of different answers; the model has none to those of these numbers."""
    return [
        Pair(
            Instruction(str(number), f"What is {number} + 1?"),
            MODEL,
            Answer(str(number), Response(f"It is {number + 1}, I think."), complete=number not in unanswered),
            BASELINE,
            Answer(str(number), Response(f"{number + 1}")),
        )
        for number in range(count)
    ]
