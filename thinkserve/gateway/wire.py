"""The JSON that crosses the wire: what is read of an engine's chunks.

Reading is by msgspec structs that hold just what is used. An engine's `reasoning` and `reasoning_content` are not
among it, so what an engine chose to call a thought cannot pass through here.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Logprob(msgspec.Struct, gc=False):
    """One token of OpenAI's `logprobs.content`, without its alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, gc=False):
    """One token of OpenAI's `logprobs.content`."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Logprob] = []


class ChoiceLogprobs(msgspec.Struct, gc=False):
    content: list[TokenLogprob] | None = None


class Delta(msgspec.Struct, gc=False):
    content: str | None = None


class ChunkChoice(msgspec.Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class EngineUsage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct, gc=False):
    """One event of an engine's stream."""

    choices: list[ChunkChoice] = []
    usage: EngineUsage | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


# How deep a client's value may be nested that goes on to an engine; writing JSON gives up at some hundreds.
MAX_DEPTH = 64

decode_chunk = msgspec.json.Decoder(Chunk).decode
encode = msgspec.json.encode


def nested_within(value: object, levels: int) -> bool:
    """Whether objects and arrays are nested in a parsed value at most so many levels deep."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(nested_within(item, levels - 1) for item in inner)


class Usage(msgspec.Struct, frozen=True):
    """What an answer took, in tokens; `reasoning` are those of `completion` that no client saw."""

    prompt: int
    completion: int
    reasoning: int

    @property
    def response(self) -> int:
        """The tokens that the client saw."""
        return self.completion - self.reasoning

    def as_completion(self) -> dict[str, Any]:
        """OpenAI's usage object of chat completions and completions."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def event(payload: object, name: str | None = None) -> bytes:
    """A server-sent event with a JSON payload; `name` where the API names its events."""
    head = b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "
    return head + encode(payload) + b"\n\n"
