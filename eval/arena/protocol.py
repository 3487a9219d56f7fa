"""How Arena-Hard has its games judged: prompts, settings, the order in which two responses are shown.

The prompts in `prompts/` are the authors' own, word for word: `own_answer.txt` judges v0.1 and the hard prompts of
v2.0, `creative_writing.txt` the rest, `game.txt` shows question and responses (with our names for the places).
"""

# Source of prompts/*.txt: lm-sys/arena-hard-auto@efc012e config/judge_config.yaml and lmarena/arena-hard-auto@196f6b8
# utils/judge_utils.py, config/arena-hard-v2.0.yaml. Copyright LMArena, Apache License 2.0.

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from thinkserve.eval.arena.verdict import read_label, verdict_of
from thinkserve.eval.arena.version import EDITIONS, Version
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.template import fill
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response

BASELINE_FIRST, MODEL_FIRST = Game(0, model_first=False), Game(1, model_first=True)
FOLLOW_UP = "continue your judgment and finish by outputting a final verdict label"

# `<|The End of Assistant A's Answer|>`, and what chat templates end a turn with (`<|im_end|>`). Operators of F# and
# Elm (`f <| x |> g`) have spaces inside.
_MARK = re.compile(r"<([|｜])(?! )([^|｜<>]{1,80})(?<! )([|｜])>")
_LABEL = re.compile(r"\[\[(\s*[AB]\s*[<>=]{1,2}\s*[AB]\s*)\]\]")


def harmless(response: Response) -> str:
    """A response as a judge may be shown it: nothing in it can pose as the end of its section, or as a verdict.

    Marks such as `<|The End of Assistant A's Answer|>` or `<|im_end|>` become `< |...| >`, which is still legible and
    no mark any more, and `[[A>>B]]` becomes `((A>>B))`, which no reader takes for a label, even if the judge quotes it.
    All other text is left as it is, so the prompt is the authors' to the byte; none of their answer files is changed.
    """
    return _LABEL.sub(r"((\1))", _MARK.sub(r"< \1\2\3 >", response))


@cache
def prompt(name: str) -> str:
    """A file of `prompts/`, without the line end at its end."""
    text = (files("thinkserve.eval.arena") / "prompts" / name).read_text(encoding="utf-8")
    return text.removesuffix("\n")


class ArenaProtocol:
    """The games of Arena-Hard, for one judge."""

    def __init__(self, version: Version, judge: str | None = None) -> None:
        """Take the authors' settings for a judge; None: those of their default judge."""
        self.edition = EDITIONS[version]
        sampling = self.edition.sampling_of(judge)
        self.settings = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Prompts and settings."""
        return {
            "protocol": self.edition.bench,
            "system": {category: prompt(name) for category, name in self.edition.prompts.items()},
            "user": prompt("game.txt"),
            "follow_up": FOLLOW_UP if self.edition.follow_up else None,
            "settings": self.settings,
        }

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """Two, with the order swapped."""
        return BASELINE_FIRST, MODEL_FIRST

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """Always a request: identical responses are judged too, as the authors do."""
        a, b = (response, baseline) if game.model_first else (baseline, response)
        user = fill(
            prompt("game.txt"),
            {"question": instruction.text, "answer_a": harmless(a), "answer_b": harmless(b)},
        )
        system = prompt(self.edition.prompts[self.edition.category_of(instruction)])
        messages = ({"role": "system", "content": system}, {"role": "user", "content": user})
        return JudgeRequest(messages, self.settings)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The last label of a reply, after the judge's own thoughts."""
        label = read_label(reply.text, reply.finish_reason)
        return label if isinstance(label, Unreadable) else verdict_of(label, game.model_first)

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """v0.1 asks once more, in the same conversation."""
        if not self.edition.follow_up or request.messages[-1]["content"] == FOLLOW_UP:
            return None
        more = ({"role": "assistant", "content": reply.text}, {"role": "user", "content": FOLLOW_UP})
        return JudgeRequest((*request.messages, *more), request.settings)

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """Much better for the side that has a response; a tie where neither has one."""
        if model_answered == baseline_answered:
            return verdict_of("A=B", game.model_first)
        return verdict_of("A>>B" if model_answered == game.model_first else "B>>A", game.model_first)
