"""The JSON of replies, in vLLM's dialect of the OpenAI chat API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from thinkserve.engines.transformers_server.generation import Delta, Generation, TokenLogprobs
from thinkserve.engines.transformers_server.prompt import TextTokenizer

DONE = b"data: [DONE]\n\n"
ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}

_encode = msgspec.json.Encoder().encode


class ChatReply:
    """Encodes one request's reply, as chunks or whole, and counts its tokens."""

    def __init__(self, generation: Generation, model: str, tokenizer: TextTokenizer) -> None:
        self._request = generation.request
        self._prompt_ids = generation.prompt_ids
        self._tokenizer = tokenizer
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if self._request.stream else "chat.completion",
            "created": int(time.time()),
            "model": model,
        }
        self._role = "assistant"
        if not self._request.add_generation_prompt:
            self._role = self._request.messages[-1]["role"]
        # All chunks open alike, so that part is encoded once: '{"id":...,"model":...,"choices":[...]}'.
        self._opening = b"data: " + _encode(self._head)[:-1] + b',"choices":['
        self._counts = [0] * self._request.n

    def first_chunks(self) -> bytes:
        """The role of each choice."""
        parts = []
        for index in range(self._request.n):
            choice = {"index": index, "delta": {"role": self._role, "content": ""}, "logprobs": None}
            parts.append(self._chunk({**choice, "finish_reason": None}, index, first=True))
        return b"".join(parts)

    def chunks(self, deltas: dict[int, Delta]) -> bytes:
        """What the choices gained since the last call; empty if none of it is for the client."""
        return b"".join(self._delta_chunk(index, delta) for index, delta in deltas.items())

    def _delta_chunk(self, index: int, delta: Delta) -> bytes:
        request = self._request
        self._counts[index] += len(delta.token_ids)
        detailed = request.return_token_ids or request.continuous_usage or request.top_logprobs is not None
        if not (delta.text or delta.finish_reason or detailed):
            return b""
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if request.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return self._chunk(choice, index)

    def _chunk(self, choice: dict[str, Any], index: int, *, first: bool = False) -> bytes:
        parts = [self._opening, _encode(choice), b"]"]
        if first and self._request.return_token_ids:
            parts += b',"prompt_token_ids":', _encode(self._prompt_ids)
        if self._request.continuous_usage:
            # Of this choice alone, as vLLM counts it.
            parts += b',"usage":', _encode(self._usage(self._counts[index]))
        parts.append(b"}\n\n")
        return b"".join(parts)

    def last_chunks(self) -> bytes:
        """Usage, if it was asked for, and the end mark."""
        if not self._request.include_usage:
            return DONE
        usage = _encode(self._usage(sum(self._counts)))
        return self._opening + b'],"usage":' + usage + b"}\n\n" + DONE

    def whole(self, choices: dict[int, Delta]) -> bytes:
        """The non-streaming reply, from each choice's merged deltas."""
        body: dict[str, Any] = {
            **self._head,
            "choices": [self._choice(index, choices[index]) for index in sorted(choices)],
            "usage": self._usage(sum(len(delta.token_ids) for delta in choices.values())),
        }
        if self._request.return_token_ids:
            body["prompt_token_ids"] = self._prompt_ids
        return _encode(body)

    def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": self._role, "content": delta.text},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        prompt_tokens = len(self._prompt_ids)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self._request.top_logprobs is None:
            return None
        return {"content": [self._token(each) for each in delta.logprobs]}

    def _token(self, logprobs: TokenLogprobs) -> dict[str, Any]:
        token_id, logprob, top = logprobs
        return {**self._scored(token_id, logprob), "top_logprobs": [self._scored(*each) for each in top]}

    def _scored(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = self._tokenizer.piece(token_id)
        # JSON has no infinity; -9999 is what vLLM writes.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": raw}


def error_body(message: str, status: int, param: str | None = None) -> bytes:
    """An OpenAI-style error."""
    kind = ERROR_TYPES.get(status, "InvalidRequestError" if status < 500 else "InternalServerError")
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def error_event(message: str) -> bytes:
    """An error in the middle of a stream; nothing follows it, not even the end mark."""
    return b"data: " + error_body(message, 500) + b"\n\n"


def models_body(model: str, created: int, max_model_len: int) -> bytes:
    """The reply of `GET /v1/models`."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "thinkserve",
        "max_model_len": max_model_len,
    }
    return _encode({"object": "list", "data": [card]})


def merged(deltas: Iterable[dict[int, Delta]]) -> dict[int, Delta]:
    """Each choice's deltas in one."""
    choices: dict[int, Delta] = {}
    for step in deltas:
        for index, delta in step.items():
            if index in choices:
                choices[index].merge(delta)
            else:
                choices[index] = delta
    return choices
