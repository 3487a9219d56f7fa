"""How an answer of `/v1/messages` is written: as Anthropic's events, or as one message.

A message is a row of blocks, and a stream opens and closes one at a time. A tool call goes out when it is whole: its
input is an object, and one that was cut off is no call, streamed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.endpoint import Answer, Call, Head
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.tools import CallDelta
from thinkserve.gateway.wire import Usage, encode, event

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}


def error_body(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body = {"type": "error", "error": {"type": kind, "message": error.message}}
    return body if request_id is None else {**body, "request_id": request_id}


def _event(payload: dict[str, Any]) -> bytes:
    return event(payload, payload["type"])


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _read_input(call: Call) -> dict[str, Any] | None:
    """What a call gives its tool; None: it was cut off, or is no object."""
    try:
        given = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def _ended(choice: Choice, calls: int) -> dict[str, Any]:
    """Why the message ended; `calls`: how many it shows."""
    if choice.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_string}
    whole = "tool_use" if calls else "end_turn"
    return {"stop_reason": _STOP_REASONS.get(choice.finish_reason or "", whole), "stop_sequence": None}


class MessagesWriter:
    """Writes an answer as Anthropic's messages; keeps the `Writer` protocol."""

    keepalive = event({"type": "ping"}, "ping")

    def __init__(self, head: Head) -> None:
        self._head = head
        self._open: str | None = None
        """The type of the block that is open."""
        self._at = -1
        """The index of the last block."""
        self._call: Call | None = None
        """The call that is coming."""
        self._calls = 0
        self._stop: dict[str, Any] = {}
        self._before = b""
        """An event of the open text block up to its text."""

    def head(self) -> bytes:
        # How long the prompt is the engine has not told yet: the last event has it.
        usage = {"input_tokens": 0, "output_tokens": 0}
        message = self._message([], {"stop_reason": None, "stop_sequence": None}, usage)
        return _event({"type": "message_start", "message": message})

    def begin(self, index: int, choice: Choice) -> bytes:
        return b""

    def text(self, index: int, visible: Visible) -> bytes:
        out = self._text(visible.text) if visible.text else b""
        for part in visible.behind:
            out += self._text(part) if isinstance(part, str) else self._call_delta(part)
        return out

    def _text(self, text: str) -> bytes:
        out = self._end_call()
        if self._open != "text":
            out += self._begin_block({"type": "text", "text": ""})
        return out + self._before + encode(text) + b"}}\n\n"

    def _call_delta(self, delta: CallDelta) -> bytes:
        out = b""
        if delta.id is not None:
            out = self._end_call()
            self._call = Call(delta.id, delta.name or "", "")
        assert self._call is not None
        self._call.arguments += delta.arguments
        return out

    def thought(self, index: int, text: str) -> bytes:
        begun = b""
        if self._open != "thinking":
            begun = self._begin_block({"type": "thinking", "thinking": "", "signature": ""})
        return begun + self._delta({"type": "thinking_delta", "thinking": text})

    def end_choice(self, index: int, choice: Choice) -> bytes:
        out = self._end_call() + self._end_block()
        self._stop = _ended(choice, self._calls)
        return out

    def end(self, usage: Usage) -> bytes:
        delta = {"type": "message_delta", "delta": self._stop, "usage": _usage(usage)}
        return _event(delta) + _event({"type": "message_stop"})

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error, self._head.id), "error")

    def _begin_block(self, block: dict[str, Any]) -> bytes:
        ended = self._end_block()
        self._open = block["type"]
        self._at += 1
        if self._open == "text":
            self._before = b"event: content_block_delta\ndata: " + (
                b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":' % self._at
            )
        begun = {"type": "content_block_start", "index": self._at, "content_block": block}
        return ended + _event(begun)

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        signed = (
            self._delta({"type": "signature_delta", "signature": ""}) if self._open == "thinking" else b""
        )
        self._open = None
        return signed + _event({"type": "content_block_stop", "index": self._at})

    def _end_call(self) -> bytes:
        """The call that was coming is whole, or will never be."""
        call, self._call = self._call, None
        if call is None or _read_input(call) is None:
            return b""
        self._calls += 1
        begun = self._begin_block({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        return begun + self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._at, "delta": delta})

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        [answer] = answers
        assert answer.choice is not None
        content: list[dict[str, Any]] = []
        if self._head.reveal and answer.thought:
            content.append({"type": "thinking", "thinking": answer.thought, "signature": ""})
        calls = 0
        for part in answer.parts:
            if isinstance(part, Call):
                if (given := _read_input(part)) is not None:
                    content.append({"type": "tool_use", "id": part.id, "name": part.name, "input": given})
                    calls += 1
            elif content and content[-1]["type"] == "text":  # what was between was no call
                content[-1]["text"] += str(part)
            else:
                content.append({"type": "text", "text": str(part)})
        return self._message(content, _ended(answer.choice, calls), _usage(usage))

    def _message(
        self, content: list[dict[str, Any]], ended: dict[str, Any], usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            **ended,
            "usage": usage,
        }
