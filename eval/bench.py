"""The seams of a run: what a bench is, what judges are asked, and what they say.

A `Bench` says what is asked of models, against whom they are judged, and how scores are made of verdicts. Its
`Protocol` turns a game into a request and a reply into a verdict, and knows nothing of networks. A `Judge` decides games:
over the API (`judging/`), or by rule (the pocket world's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from thinkserve.eval.answer import Answers
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Match, Verdict
from thinkserve.eval.scores import Scores
from thinkserve.thoughts import Response

Compat = Literal["official", "aligned"]


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """What a judge is asked: the messages of one chat completion, and its settings."""

    messages: tuple[Mapping[str, str], ...]
    """Each with `role` and `content`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request: `temperature`, `max_tokens`, `logprobs` ... without the model."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said."""

    text: str
    """All of its visible text. Its own thoughts may be in it, up to a `</think>`."""
    finish_reason: str | None = None
    top_logprobs: Mapping[str, float] | None = None
    """Of the first token: from token to log probability; None where the server gives none."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A reply with no verdict in it, and why: `no verdict`, `two verdicts`, `empty`, `truncated`, `no logprobs` ..."""

    kind: str


class JudgeProtocol(Protocol):
    """How a bench has its games judged; knows nothing of networks."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Everything of the protocol that a verdict hangs on (templates, settings): hashed into its key."""

    def games(self, instruction: Instruction) -> tuple[Game, ...]:
        """The games that are played about each match of an instruction."""

    def request(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> JudgeRequest | Verdict:
        """What the judge is asked, or the verdict where the bench decides without one (identical responses)."""

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """The verdict in a reply."""

    def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest | None:
        """What to ask further where a reply had no verdict (Arena-Hard v0.1 does), or None."""

    def forfeit(self, game: Game, model_answered: bool, baseline_answered: bool) -> Verdict:
        """The verdict without a judge where one side or both have no response (their thought never ended)."""


class Bench(Protocol):
    """A benchmark."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def instructions(self) -> Sequence[Instruction]:
        """In the official order."""

    def protocol_of(self, judge: str) -> JudgeProtocol:
        """How its games are judged by a judge of that name."""

    @property
    def official_judge(self) -> str | None:
        """The model whose verdicts the published numbers are made of, at OpenAI; None where there is none."""

    @property
    def ensembles(self) -> bool:
        """Whether the verdicts of several judges can be put together."""

    def baseline_of(self, instruction: Instruction) -> str | None:
        """The model that others are judged against here; None: the user must name one."""

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """The official answers of the baselines of some instructions, by model.

        Raises:
            UsageError: they are not at hand; the message says what is missing and where to put it.
        """

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Make scores of verdicts.

        Args:
            matches: from model to its matches, in the order of the instructions (or of the official file).
            compat: `official` reproduces the published numbers with their quirks; `aligned` mends them.
            seed: of the bootstraps.
        """


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of judgments will cost, before the first call."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    """None where the price of the model is not known."""
