"""Two models head to head, by a prompt of our own: what a bench uses that has no official protocol.

The judge sees two responses as A and B, says what tells them apart, and ends with `[[A]]`, `[[B]]` or `[[C]]`. One game
is shown in an order that is drawn from the instruction; two games are both orders, and if they contradict each other the
match is a draw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

from thinkserve.eval.arena.verdict import last_mark
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.comparison import head_to_head
from thinkserve.eval.fence import fence
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.template import fill
from thinkserve.eval.match import Game, Match, Verdict
from thinkserve.eval.scores import Scores
from thinkserve.thoughts import Response

# Room for a judge that thinks first; most say what they have to say in 300 tokens.
SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 8192}
TIE = "C"

_PREFERENCES = {"A": 1.0, "B": 0.0, TIE: 0.5}
_VERDICT = re.compile(r"\[\[\s*(?:RESPONSE\s+)?(A|B|C|TIE)\s*\]\]", re.IGNORECASE)


class PairwiseProtocol:
    """Asks which of two responses is better.

    Args:
        games: 1 in a drawn order, or 2 in both.
        seed: of the order.
        settings: of the judge's requests.
    """

    def __init__(
        self, games: Literal[1, 2] = 1, *, seed: int = 0, settings: Mapping[str, Any] = SETTINGS
    ) -> None:
        if games not in (1, 2):
            raise ValueError(f"a match has one game or two, not {games}")
        self._games, self._seed, self._settings = games, seed, dict(settings)

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Prompt and settings; which order is shown is in the game."""
        return {"protocol": "pairwise", "prompt": prompt(), "settings": self._settings}

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """One game, in an order that hangs on the instruction and the seed alone; or both orders."""
        if self._games == 2:
            return (Game(0, True), Game(1, False))
        drawn = sha256(f"{self._seed}:{instruction.text}".encode("utf-8", "surrogatepass")).digest()
        return (Game(0, bool(drawn[0] & 1)),)

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What the judge is asked; identical responses are a tie without it."""
        if response == baseline:
            return Verdict(TIE, 0.5)
        a, b = (response, baseline) if game.model_first else (baseline, response)
        values = {
            "fence": fence(instruction.text, a, b),
            "instruction": instruction.text,
            "response_a": a,
            "response_b": b,
        }
        return JudgeRequest(({"role": "user", "content": fill(prompt(), values)},), self._settings)

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The last verdict."""
        found = last_mark(reply, _VERDICT)
        if isinstance(found, Unreadable):
            return found
        label = found.upper()
        return _verdict(TIE if label == "TIE" else label, game)

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """Nothing: the game is asked for anew on the next run."""
        return None

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """Won by the side that has a response; a tie where neither has one."""
        if model_answered == baseline_answered:
            return _verdict(TIE, game)
        return _verdict("A" if model_answered == game.model_first else "B", game)


@cache
def prompt() -> str:
    """The template of the request."""
    return (files("thinkserve.eval") / "prompts" / "pairwise.txt").read_text("utf-8").strip()


def _verdict(label: str, game: Game) -> Verdict:
    for_a = _PREFERENCES[label]
    return Verdict(label, for_a if game.model_first else 1 - for_a)


def score_pairwise(
    bench: str,
    matches: Mapping[str, Sequence[Match]],
    *,
    seed: int,
    compat: str = "aligned",
    judge: str | None = None,
    baseline: str | None = None,
    schemes: Iterable[str] | None = None,
    notes: Sequence[str] = (),
) -> Scores:
    """Make scores of verdicts: of each model its win rate over its baseline, plain and length-controlled.

    Args:
        bench: its name.
        matches: of each model.
        seed: of the bootstraps.
        compat: as it was asked for; there is nothing here that it changes.
        judge: who judged; None: as the games say.
        baseline: against whom; None: as the matches say.
        schemes: of the categories; None: all that the instructions have.
        notes: about the whole run.
    """
    played = [match for found in matches.values() for match in found]
    if judge is None:
        judge = "+".join(dict.fromkeys(game.judge for match in played for game in match.games))
    if baseline is None:
        baseline = "+".join(dict.fromkeys(match.baseline_model for match in played))
    if schemes is None:
        schemes = dict.fromkeys(scheme for match in played for scheme in match.instruction.categories)
    wanted = tuple(schemes)
    models = {model: head_to_head(found, seed=seed, schemes=wanted) for model, found in matches.items()}
    return Scores(bench, judge, baseline, compat, models, notes=tuple(notes))
