"""How AlpacaEval 2 has a match judged: the official annotator `weighted_alpaca_eval_gpt4_turbo`.

The judge is shown two outputs, named `m` and `M`, and says which is better with one token, whose log probabilities make
the preference. Prompt and settings are those that the `alpaca-eval` package carries. Judges that think, or that give no
log probabilities, can be asked for the verdict as text; what comes out is another measure.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from thinkserve.eval.alpaca import package
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.template import fill
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response

FIRST, SECOND = "m", "M"
DRAW = "draw"

Verdicts = Literal["logprobs", "text"]

TEXT_NOTE = (
    "verdicts were read from the judge's text (whole wins and losses) and not from its log probabilities, as "
    "AlpacaEval 2 does: not comparable with published numbers"
)

# Room for a judge that thinks before it answers with one letter.
TEXT_TOKENS = 8192

# A letter that stands alone, quoted or not: not the one of "I'm", and not the metres of "5 m".
_LETTER = re.compile(r"(?<!\w)'([mM])'(?!\w)|(?<!\d\s)(?<![\w'’])([mM])(?![\w'’])")


class AlpacaProtocol:
    """The official annotator, or (`verdicts="text"`) the same question with its answer read from the judge's text."""

    def __init__(self, verdicts: Verdicts = "logprobs") -> None:
        self.verdicts = verdicts

    @property
    def note(self) -> str | None:
        """Why its numbers are not comparable with published ones; None where they are."""
        return TEXT_NOTE if self.verdicts == "text" else None

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        """The annotator, its prompt and the settings of the request."""
        return {
            "annotator": package.ANNOTATOR,
            "verdicts": self.verdicts,
            "messages": [dict(message) for message in self._messages],
            "settings": dict(self._settings),
        }

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """One game; the instruction decides whose response is shown first."""
        # The package's seed: a constant, the instruction, and the seed of the annotator.
        switched = random.Random(f"is_switched_outputs{instruction.text}0").choices([False, True], k=1)[0]
        return (Game(0, model_first=switched),)

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What the judge is asked; identical responses are a draw without it."""
        if response == baseline:
            return Verdict(DRAW, 0.5)
        first, second = (response, baseline) if game.model_first else (baseline, response)
        values = {"instruction": instruction.text, "output_1": str(first), "output_2": str(second)}
        return JudgeRequest(
            tuple(
                {
                    "role": message["role"],
                    "content": _filled(message["content"], values),
                }
                for message in self._messages
            ),
            self._settings,
        )

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The preference in the log probabilities of the first token, or the last `m` or `M` of the text."""
        if self.verdicts == "text":
            return _read_text(game, reply)
        if reply.top_logprobs is None:
            return Unreadable("no logprobs")
        first = probability_of_first(reply.top_logprobs)
        return Unreadable("no verdict") if first is None else _verdict(game, first)

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """Nothing: AlpacaEval asks once."""
        return None

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """A loss for whoever has no response; a draw where neither has one."""
        if model_answered == baseline_answered:
            return Verdict(DRAW, 0.5)
        return verdict_of(game, 1.0 if model_answered else 0.0)

    @cached_property
    def _messages(self) -> tuple[Mapping[str, str], ...]:
        return messages_of(package.prompt_template())

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        if self.verdicts == "text":
            return {"max_tokens": TEXT_TOKENS, "temperature": 0}
        asked = {name: value for name, value in package.annotator()["completions_kwargs"].items()}
        del asked["model_name"]  # the judge's
        return {**asked, "top_p": 1}  # what the package's decoder sends unless told otherwise


def messages_of(chatml: str) -> tuple[Mapping[str, str], ...]:
    """A prompt in ChatML as messages. For templates: what is put into one must not come to open a message."""
    messages = []
    for part in chatml.split("<|im_start|>")[1:]:
        role, _, content = part.partition("\n")
        messages.append({"role": role.strip(), "content": content.split("<|im_end|>")[0].strip()})
    return tuple(messages)


def probability_of_first(top_logprobs: Mapping[str, float]) -> float | None:
    """The share of `m` in the probability of `m` and `M`; one that is not among the top counts as 0.

    None where neither is: the judge said something else. Source: `logprob_parser` of alpaca_eval 0.6.6.
    """
    of_first = top_logprobs.get(FIRST, -math.inf)
    of_second = top_logprobs.get(SECOND, -math.inf)
    most = max(of_first, of_second)
    if not math.isfinite(most):
        return None
    first = math.exp(of_first - most)
    return first / (first + math.exp(of_second - most))


def verdict_of(game: Game, preference: float) -> Verdict:
    """The verdict of a preference for the model; its label is the letter under which the better response was shown."""
    if preference == 0.5:
        return Verdict(DRAW, 0.5)
    return Verdict(FIRST if (preference > 0.5) == game.model_first else SECOND, preference)


def _verdict(game: Game, first: float) -> Verdict:
    """The verdict of a probability that the response shown first is the better one."""
    return verdict_of(game, first if game.model_first else 1 - first)


def _read_text(game: Game, reply: Reply) -> Verdict | Unreadable:
    text = reply.text.rpartition("</think>")[2]
    if not text.strip():
        return Unreadable("empty")
    letters = [quoted or bare for quoted, bare in _LETTER.findall(text)] if "<think>" not in text else []
    if not letters:
        return Unreadable("truncated" if reply.finish_reason == "length" else "no verdict")
    return _verdict(game, 1.0 if letters[-1] == FIRST else 0.0)


def _filled(content: str, values: Mapping[str, str]) -> str:
    return fill(content, {name: value for name, value in values.items() if f"{{{name}}}" in content})
