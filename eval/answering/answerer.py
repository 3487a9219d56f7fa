"""Asks a model one instruction, and takes nothing of its output but the response and how long the thought was.

A `Response` is made in two places only, and both are here: of the content of a server that hides thoughts (where a
thought can be seen in it all the same, the run ends), and by cutting the content of a server, or of a file (`given.py`),
that is known to have whole outputs. What comes beside the content as reasoning is counted where the body is read, and dropped there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, Protocol

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer, OutputLength
from thinkserve.eval.answering.exposure import visible_marker
from thinkserve.eval.answering.server import ModelServer
from thinkserve.eval.answering.stage import AnswerFailedError
from thinkserve.eval.answering.tokens import split_tokens
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.completion import Completion, CompletionFailed
from thinkserve.eval.judging.failure import MALFORMED
from thinkserve.thoughts import Response, ThoughtFormat, split

logger = logging.getLogger(__name__)

Mode = Literal["thought", "direct"]

# What asks for a response without a thought: OpenAI's field, which our gateway and current vLLM and SGLang take.
EFFORT = "reasoning_effort"


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked. What is None is not sent, so that the defaults of the model and its server count."""

    mode: Mode = "thought"
    seed: int | None = 0
    """Of the run; each instruction has one of its own that hangs on it."""
    temperature: float | None = None
    max_tokens: int | None = None
    """Of the response; on servers that do not tell them apart, of thought and response together."""


class Chat(Protocol):
    """The client: `ChatClient`."""

    async def complete(self, request: JudgeRequest) -> Completion:
        """Ask for one completion.

        Raises:
            CompletionFailed: this one failed, retries included.
            ThinkserveError: all would fail.
        """


class Answerer:
    """Asks one model, in one mode."""

    def __init__(self, server: ModelServer, chat: Chat, asking: Asking) -> None:
        """Say who is asked, and how.

        Args:
            server: the model's.
            chat: a client of that server and model.
            asking: the settings.

        Raises:
            UsageError: direct mode is asked for, and the server's format cannot do without a thought.
        """
        format = server.raw_format
        if asking.mode == "direct" and format is not None:
            check_direct(format, server.url)
        self._server, self._chat, self._asking = server, chat, asking
        self._settings = _settings(asking, format)
        self._warned = False

    @property
    def mode(self) -> Mode:
        """Whether the model is asked to think."""
        return self._asking.mode

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that an answer hangs on beside the instruction."""
        format = self._server.raw_format
        return {
            "identity": self._server.identity or self._server.url,
            "model": self._server.model,
            "settings": {**self._settings, "seed": self._asking.seed},
            "raw_format": None if format is None else asdict(format),
        }

    async def answer(self, instruction: Instruction) -> tuple[Answer, OutputLength]:
        """Answer one instruction.

        Raises:
            AnswerFailedError: the server failed at this one, retries included.
            UsageError: the server shows thoughts and nobody said how they are marked, or cannot be asked like this.
        """
        format, text = self._server.raw_format, instruction.text
        if format is not None and self.mode == "thought":
            text = format.thought_prompt(text)
        settings = dict(self._settings)
        if self._asking.seed is not None:
            settings["seed"] = seed_of(self._asking.seed, instruction.text)
        request = JudgeRequest(({"role": "user", "content": text},), settings)
        try:
            completion = await self._chat.complete(request)
        except CompletionFailed as exc:
            if exc.failures[-1] == MALFORMED:
                return _nothing(instruction.id)
            raise AnswerFailedError(str(exc)) from exc
        except ThinkserveError as exc:
            if EFFORT in self._settings and EFFORT in str(exc):
                raise UsageError(
                    f'--mode direct asks for a response without a thought by {EFFORT}: "none", and that is refused: {exc}'
                ) from exc
            raise
        return self._taken(instruction.id, completion)

    def _taken(self, id: str, completion: Completion) -> tuple[Answer, OutputLength]:
        """The answer in a completion; of what is beside it, the length."""
        content = completion.reply.text
        thought, response = split_tokens(completion.completion_tokens, completion.reasoning_tokens)
        characters = completion.reasoning_characters
        if (thought or characters) and self.mode == "direct":
            self._warn_of_thought()
        if self._server.raw_format is None:
            # Nothing but a thought, though it ended by itself: some servers call a thought without an end that.
            only_thought = bool(thought or characters) and not self._server.private
            answer = self._hidden(
                id, content, lost=only_thought or completion.reply.finish_reason == "length"
            )
        else:
            if characters:
                raise UsageError(
                    f"{self._server.url} keeps thoughts apart from its content; ask again without --thought-format"
                )
            answer, characters = cut(id, content, self._server.raw_format, direct=self.mode == "direct")
            thought = response = None
        return answer, OutputLength(
            id, thought, characters, response, len(answer.response), completion.seconds
        )

    def _hidden(self, id: str, content: str, *, lost: bool) -> Answer:
        """The answer of a server that hides thoughts; `lost` where no content means that the thought never ended.

        Raises:
            UsageError: a thought can be seen in it.
        """
        # Our own gateway is known to cut thoughts, so there a marker is what the model says about markers.
        seen = None if self._server.private else visible_marker(content)
        if seen is not None:
            raise UsageError(
                f"{self._server.url} shows thoughts: what {self._server.model!r} answered to instruction {id} has the "
                f"marker {seen!r} in it, and no judge may see that; say how its thoughts are marked with "
                "--thought-format NAME"
            )
        if lost and not content.strip():
            return Answer(id, Response(""), complete=False)
        return Answer(id, Response(content))

    def _warn_of_thought(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: %s thinks in direct mode too, though it was asked not to; see the thought lengths in the report",
                self._server.url,
                self._server.model,
            )


def check_direct(format: ThoughtFormat, whose: str) -> None:
    """Make sure that a model can be asked for a response without a thought.

    Raises:
        UsageError: in its format a thought could not be told from a response then.
    """
    if not format.allows_direct:
        raise UsageError(
            f"--mode direct and both: in the thought format {format.name!r} of {whose} a model that thinks all the same "
            "could not be told apart; ask for --mode thought, or set direct in a format file"
        )


def seed_of(seed: int, text: str) -> int:
    """The seed of one instruction, from 0 to 2**31 - 1.

    With one seed for all, every output begins with the same random draws, and a sampled first choice (how to think) falls
    out the same way in all of them: the pocket model was right in 15 % of the instructions instead of 40 %.
    """
    digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (seed + int.from_bytes(digest[:4], "big")) % 2**31


def _settings(asking: Asking, format: ThoughtFormat | None) -> dict[str, Any]:
    """The fields of the request beside the messages."""
    settings: dict[str, Any] = {
        name: value for name in ("temperature", "max_tokens") if (value := getattr(asking, name)) is not None
    }
    # Where a thought prompt makes the model think, leaving that out is what makes it answer directly.
    if asking.mode == "direct" and (format is None or format.prompt is None):
        settings[EFFORT] = "none"
    return settings


def cut(id: str, content: str, format: ThoughtFormat, *, direct: bool = False) -> tuple[Answer, int]:
    """The answer in a whole output, and the length of its thought in characters."""
    output = split(content, format, direct=direct)
    response = output.response if output.complete else Response("")
    return Answer(id, response, output.complete), len(output.thought)


def _nothing(id: str) -> tuple[Answer, OutputLength]:
    """The answer of a model whose output broke its format however often it was sampled."""
    return Answer(id, Response(""), complete=False), OutputLength(id, None, None, None, 0, None)
