"""`POST /v1/completions`: OpenAI's legacy completions.

A prompt is a user message of a conversation of its own, and goes to the engine as a chat: the thought prompt can go round
it, and it works on every engine. So a base model's bare continuation of a text is not what comes back.

`max_tokens` bounds the response, and there is no bound where none is given (OpenAI's default of 16 would cut nearly every
answer of a model that thinks).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.gateway.api.completion import FIELDS as SHARED
from thinkserve.gateway.api.completion import CompletionWriter, incomplete, shared
from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Answer, Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import (
    ENGINE_EXTRAS,
    PROMPT,
    REFUSE,
    REWRITE,
    Check,
    Field,
    Fields,
    boolean,
    integer,
    read_fields,
)
from thinkserve.gateway.request import Names, Request, check_choices
from thinkserve.gateway.wire import TokenLogprob, Usage, encode


def _read_prompts(name: str, value: Any) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise invalid(name, f"{name} must be a string or an array of strings, not {shown(value)}")
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, int | list):
            raise invalid(
                name,
                f"{name} must be a string or an array of strings; token ids are refused: they would set what stands "
                "round the prompt, which decides what is a thought",
                code="unsupported_value",
            )
        if not isinstance(prompt, str):
            raise invalid(f"{name}[{at}]", f"{name}[{at}] must be a string, not {shown(prompt)}")
    return tuple(prompts)


prompts = Check(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
    _read_prompts,
)
"""A string, or several."""

_CHAT = "use /v1/chat/completions"

FIELDS: Fields = {
    **SHARED,
    "prompt": Field(
        REWRITE, "each is a user message of a conversation of its own; token ids are refused", prompts
    ),
    "best_of": Field(REWRITE, "1, or the same as n", integer(1, 128)),
    "echo": Field(REWRITE, "the prompt as the client gave it, before the response", boolean),
    "logprobs": Field(REWRITE, "of exactly the tokens of the response", integer(0, 5)),
    "max_tokens": Field(REWRITE, "bounds the response; no bound by default", integer(1, 2**31 - 1)),
    "suffix": Field(REFUSE, PROMPT),
    "prompt_embeds": Field(
        REFUSE, "they would set what stands round the prompt, which decides what is a thought"
    ),
    "messages": Field(REFUSE, _CHAT),
    "tools": Field(REFUSE, _CHAT),
    "tool_choice": Field(REFUSE, _CHAT),
    **ENGINE_EXTRAS,
}


NAMES = Names(messages="prompt")


class Completions:
    """The endpoint; keeps the `Endpoint` protocol."""

    path = "/v1/completions"
    fields = FIELDS
    required: tuple[str, ...] = ("prompt",)

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    def new_id(self) -> str:
        return f"cmpl-{secrets.token_hex(12)}"

    def read(self, data: Mapping[str, Any]) -> Request:
        config = self._config
        values = read_fields(data, FIELDS, config.allow_fields)
        given = values.rewritten
        if "prompt" not in given:
            raise invalid("prompt", "prompt is missing: give a string or an array of strings")
        asked: tuple[str, ...] = given["prompt"]
        n: int = given.get("n", 1)
        check_choices("n", n, config.max_choices)
        if len(asked) * n > config.max_choices:
            raise invalid(
                "prompt", f"{len(asked)} prompts x n {n} are more choices than the {config.max_choices} taken"
            )
        if given.get("best_of", n) not in (1, n):
            raise invalid("best_of", f"best_of must be 1 or n ({n}), not {given['best_of']}: use n")
        return Request(
            **shared(values),
            conversations=tuple([{"role": "user", "content": prompt}] for prompt in asked),
            logprobs="logprobs" in given,
            top_logprobs=given.get("logprobs", 0),
            echo=asked if given.get("echo") else (),
            names=NAMES,
        )

    def writer(self, head: Head) -> CompletionsWriter:
        return CompletionsWriter(head)

    def error(self, error: ApiError) -> bytes:
        return error.body()


class CompletionsWriter(CompletionWriter):
    """Writes an answer as text completions; keeps the `Writer` protocol."""

    def __init__(self, head: Head) -> None:
        super().__init__(head, "text_completion")
        request = head.request
        self._before = [self._prefix + b'{"index":%d,"text":' % index for index in range(request.choices)]
        self._echoes = [
            request.echo[request.conversation(index)] if request.echo else ""
            for index in range(request.choices)
        ]
        self._offsets = [len(echo) for echo in self._echoes]  # where the next token of each choice begins

    def head(self) -> bytes:
        echoes = b"".join(self._text(index, echo) for index, echo in enumerate(self._echoes) if echo)
        return echoes or self.keepalive

    def text(self, index: int, visible: Visible) -> bytes:
        if not self._logprobs:
            return self._before[index] + encode(visible.text) + self._after
        logprobs, self._offsets[index] = _legacy(visible.logprobs, self._offsets[index])
        return self._text(index, visible.text, logprobs)

    def thought(self, index: int, text: str) -> bytes:
        return self._text(index, "", reasoning=text)

    def end_choice(self, index: int, choice: Choice) -> bytes:
        return self._text(index, "", finish=choice.finish_reason, **incomplete(choice))

    def _text(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        return self._chunk(
            {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish, **more}
        )

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return self._base | {"choices": choices, "usage": usage.as_completion()}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = answer.choice
        assert choice is not None
        echo = self._echoes[index]
        written: dict[str, Any] = {
            "index": index,
            "text": echo + answer.text,
            "logprobs": _legacy(answer.logprobs, len(echo))[0] if self._logprobs else None,
            "finish_reason": choice.finish_reason,
            **incomplete(choice),
        }
        if self._head.reveal:
            written["reasoning"] = answer.thought
        return written


def _legacy(entries: Sequence[TokenLogprob], offset: int) -> tuple[dict[str, Any], int]:
    """The logprobs of some tokens in the form of this API, and where the next token begins.

    Args:
        entries: the tokens.
        offset: where the first of them begins in the text of the choice, in characters.
    """
    offsets = []
    for entry in entries:
        offsets.append(offset)
        raw = entry.token.encode() if entry.bytes is None else entry.bytes
        # A character may be more than one token's; it counts for the one that it begins in.
        offset += sum(byte & 0xC0 != 0x80 for byte in raw)
    logprobs = {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        # As at OpenAI, the token itself is among them, so there may be one more than was asked for.
        "top_logprobs": [
            {other.token: other.logprob for other in entry.top_logprobs} | {entry.token: entry.logprob}
            for entry in entries
        ],
        "text_offset": offsets,
    }
    return logprobs, offset
