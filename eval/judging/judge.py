"""Judges: what decides a game. It gets two `Response`s, so there is no way for a thought to reach it.

`ApiJudge` asks a model; `ByRule` is for protocols that decide every game themselves (the pocket world's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.bench import JudgeProtocol, JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.completion import Completion, CompletionFailed
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response

if TYPE_CHECKING:
    from thinkserve.eval.judging.client import ChatClient

NO_LOGPROBS = "no logprobs"
# So many replies without log probabilities, and none with: the server does not give them.
REPLIES_WITHOUT_LOGPROBS = 10
# A protocol that always has one more thing to ask would never end.
MOST_TURNS = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of one game; the parts of a `Judgment` that a judge knows."""

    verdict: Verdict | None
    request_sha256: str = ""
    """Empty where no judge was asked."""
    raw: str | None = None
    top_logprobs: Mapping[str, float] | None = None
    failures: tuple[str, ...] = ()
    """The kinds of all failed attempts; where there is no verdict, the last one is why."""
    attempts: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None


class Judge(Protocol):
    """What decides games."""

    @property
    def name(self) -> str:
        """As in the names of files and in reports."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that a verdict hangs on beside what is judged: hashed into its key."""

    @property
    def concurrency(self) -> int:
        """How many games it decides at once, at most."""

    async def decide(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> Decision:
        """Decide a game.

        Raises:
            ThinkserveError: no game can be decided; the message says what to do.
        """


class ByRule:
    """A judge for a protocol that decides every game without one."""

    concurrency = 1

    def __init__(self, protocol: JudgeProtocol, name: str) -> None:
        self.name = name
        self._protocol = protocol
        self.configuration: Mapping[str, Any] = {"rule": name, "protocol": protocol.configuration}

    async def decide(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> Decision:
        """Decide a game.

        Raises:
            ThinkserveError: the protocol has no verdict of its own.
        """
        found = self._protocol.request(instruction, game, _blind(response), _blind(baseline))
        if isinstance(found, JudgeRequest):
            raise ThinkserveError(
                f"instruction {instruction.id} needs a judge, and {self.name!r} is a rule: name one"
            )
        return Decision(found)


class ApiJudge:
    """A model as a judge.

    Args:
        client: asks it.
        protocol: of the bench.
        name: None: that of the model.
        reasks: how often the same is asked again after a reply without a verdict.
    """

    def __init__(
        self, client: ChatClient, protocol: JudgeProtocol, name: str | None = None, *, reasks: int = 1
    ) -> None:
        self.name = name if name is not None else client.model
        self.concurrency = client.concurrency
        self.configuration: Mapping[str, Any] = {"model": client.model, "protocol": protocol.configuration}
        self._client, self._protocol, self._reasks = client, protocol, reasks
        self._without_logprobs: int | None = 0
        """Replies that had none where they were asked for; None once one had."""

    async def decide(
        self, instruction: Instruction, game: Game, response: Response, baseline: Response
    ) -> Decision:
        """Ask, ask further where the protocol wants it, and ask again where the reply cannot be read.

        Raises:
            ThinkserveError: the server refuses all that is asked; the message says what to do.
        """
        request = self._protocol.request(instruction, game, _blind(response), _blind(baseline))
        if isinstance(request, Verdict):
            return Decision(request)
        record = _Record(_sha256(request))
        for _ in range(1 + self._reasks):
            try:
                found = await self._converse(instruction, game, request, record)
            except CompletionFailed as exc:
                record.failed(exc)
                break
            if isinstance(found, Verdict):
                return record.decision(found)
            record.failures.append(found.kind)
            if found.kind == NO_LOGPROBS:  # nor will there be any the next time
                break
        return record.decision(None)

    async def _converse(
        self, instruction: Instruction, game: Game, request: JudgeRequest, record: _Record
    ) -> Verdict | Unreadable:
        """One reply, or as many as the protocol asks further for; they are read as one text."""
        texts: list[str] = []
        asked: JudgeRequest | None = request
        found: Verdict | Unreadable = Unreadable("empty")
        while asked is not None and len(texts) < MOST_TURNS:
            completion = await self._client.complete(asked)
            reply = completion.reply
            texts.append(reply.text)
            whole = Reply("\n".join(texts), reply.finish_reason, reply.top_logprobs)
            record.said(completion, whole)
            found = self._protocol.read(instruction, game, whole)
            self._watch_logprobs(asked, found)
            asked = self._protocol.follow_up(asked, reply, found) if isinstance(found, Unreadable) else None
        return found

    def _watch_logprobs(self, request: JudgeRequest, found: Verdict | Unreadable) -> None:
        """Do not pay for hundreds of replies from a server that ignores `logprobs`."""
        if self._without_logprobs is None or not request.settings.get("logprobs"):
            return
        if not isinstance(found, Unreadable) or found.kind != NO_LOGPROBS:
            self._without_logprobs = None
            return
        self._without_logprobs += 1
        if self._without_logprobs >= REPLIES_WITHOUT_LOGPROBS:
            raise ThinkserveError(
                f"the judge {self.name!r} gives no log probabilities of its tokens: name one that does, or have its "
                "verdicts read from its text (--verdicts text), which is not comparable with published numbers"
            )


@dataclass(slots=True)
class _Record:
    """A decision in the making."""

    request_sha256: str
    reply: Reply | None = None
    failures: list[str] = field(default_factory=list)
    attempts: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0

    def said(self, completion: Completion, reply: Reply) -> None:
        self.reply = reply
        self.failures += completion.failures
        self.attempts += completion.attempts
        self.prompt_tokens = _plus(self.prompt_tokens, completion.prompt_tokens)
        self.completion_tokens = _plus(self.completion_tokens, completion.completion_tokens)
        self.seconds += completion.seconds

    def failed(self, exc: CompletionFailed) -> None:
        self.failures += exc.failures
        self.attempts += len(exc.failures)
        self.seconds += exc.seconds

    def decision(self, verdict: Verdict | None) -> Decision:
        return Decision(
            verdict,
            self.request_sha256,
            None if self.reply is None else self.reply.text,
            None if self.reply is None else self.reply.top_logprobs,
            tuple(self.failures),
            self.attempts,
            self.prompt_tokens,
            self.completion_tokens,
            round(self.seconds, 4),
        )


def _plus(sum_: int | None, count: int | None) -> int | None:
    return sum_ if count is None else (sum_ or 0) + count


def _blind(response: Response) -> Response:
    if not isinstance(response, Response):
        raise TypeError(f"a judge may only see a Response, and not a {type(response).__name__}")
    return response


def _sha256(request: JudgeRequest) -> str:
    try:
        sent = msgspec.json.encode([request.messages, request.settings], order="deterministic")
    except UnicodeEncodeError:  # half of a surrogate pair, which the client replaces
        sent = repr((request.messages, sorted(request.settings.items()))).encode()
    return sha256(sent).hexdigest()
