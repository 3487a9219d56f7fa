"""The JSON that crosses the wire: what is read of an engine's chunks, and how our own are written.

Reading is by msgspec structs that hold just what is used. An engine's `reasoning` and `reasoning_content` are not
among it, so what an engine chose to call a thought cannot pass through here. Writing puts the JSON of the text between
two byte strings made once a choice: an event costs one string encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct, gc=False):
    """One event of an engine's stream."""

    choices: list[ChunkChoice] = []
    usage: Usage | None = None
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


def usage_json(prompt: int, completion: int, reasoning: int) -> dict[str, Any]:
    """OpenAI's usage object; reasoning tokens are those of `completion` that no client saw."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class ChunkWriter:
    """Writes the chunks of one choice of a streamed answer."""

    __slots__ = ("_after", "_before", "_head", "_index", "_tail")

    def __init__(self, *, id: str, created: int, model: str, index: int, usage_field: bool) -> None:
        head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._index = index
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        # Where usage was asked for, OpenAI puts a null on every chunk but the last.
        self._tail = b'],"usage":null}\n\n' if usage_field else b"]}\n\n"
        self._before = self._head + b'{"index":%d,"delta":{"content":' % index
        self._after = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def content(self, text: str) -> bytes:
        """A stretch of the response."""
        return self._before + encode(text) + self._after

    def delta(
        self,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] | None = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        """Any other chunk of the choice: the role, a text with logprobs, the end."""
        choice = {
            "index": self._index,
            "delta": delta,
            "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
            "finish_reason": finish,
            **more,
        }
        return self._head + encode(choice) + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of the stream: no choice, and the usage of all of them."""
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n"
