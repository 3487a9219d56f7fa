"""A chat completion as it comes over the wire, and what is kept of it.

Bodies are decoded by `msgspec` into just the fields that are needed: the models of the `openai` package cost more than
the call itself where a judge is near.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.bench import Reply


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered, and what it took."""

    reply: Reply
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """With those of its reasoning."""
    reasoning_tokens: int | None = None
    """As the server counts them, where it keeps the reasoning apart."""
    reasoning_characters: int | None = None
    """Of the reasoning that came beside the text; None where there was none. The text itself is not kept."""
    seconds: float = 0.0
    """Of the call that succeeded."""
    attempts: int = 1
    """Calls, failed ones included."""
    failures: tuple[str, ...] = ()
    """The kinds of the failed calls, in order: `http 429`, `http 500`, `timeout`, `connection`, `bad json`, `empty`."""
    choices: tuple[Choice, ...] = ()
    """All that came, the reply's the first: for requests with `n`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several outputs to a request."""

    text: str
    finish_reason: str | None
    tokens: int | None
    """None where the server was not asked for token ids, or does not tell them."""


class CompletionFailed(ThinkserveError):
    """No attempt at one request succeeded; others may."""

    def __init__(self, message: str, failures: tuple[str, ...], seconds: float) -> None:
        super().__init__(message)
        self.failures = failures
        """As in `Completion`; never empty."""
        self.seconds = seconds
        """Of all attempts, with the waiting in between."""


class BadBody(Exception):
    """A body that is no completion; its text is the kind of failure."""


class _Token(msgspec.Struct):
    token: str
    logprob: float


class _Position(msgspec.Struct):
    top_logprobs: list[_Token] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Position] | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    index: int = 0


class _Details(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def read_completion(body: bytes) -> Completion:
    """Read the body of a chat completion.

    Raises:
        BadBody: it is cut short, something else, or an error that some proxies send with status 200.
    """
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadBody("bad json") from None
    if found.error and not found.choices:
        code = found.error.get("code") if isinstance(found.error, dict) else None
        raise BadBody(f"http {code}" if isinstance(code, int) else "empty")
    if not found.choices:
        raise BadBody("empty")
    choices = sorted(found.choices, key=lambda choice: choice.index)
    choice, usage = choices[0], found.usage or _Usage()
    details = usage.completion_tokens_details or _Details()
    reasoning = choice.message.reasoning_content or choice.message.reasoning
    return Completion(
        Reply(_text(choice.message), choice.finish_reason, _top_logprobs(choice.logprobs)),
        usage.prompt_tokens,
        usage.completion_tokens,
        details.reasoning_tokens,
        len(reasoning) if reasoning else None,
        choices=tuple(
            Choice(
                _text(one.message),
                one.finish_reason,
                None if one.token_ids is None else len(one.token_ids),
            )
            for one in choices
        ),
    )


def _text(message: _Message) -> str:
    if isinstance(message.content, list):  # of parts, as some servers have it
        return "".join(part["text"] for part in message.content if isinstance(part.get("text"), str))
    return message.content or message.refusal or ""


def _top_logprobs(logprobs: _Logprobs | None) -> Mapping[str, float] | None:
    """Those of the first token. Two tokens may have the same text; the likelier stands for both."""
    if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
        return None
    top: dict[str, float] = {}
    for found in logprobs.content[0].top_logprobs:
        top[found.token] = max(found.logprob, top.get(found.token, found.logprob))
    return top
