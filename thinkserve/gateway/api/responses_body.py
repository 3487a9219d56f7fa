"""The body of an answer of `/v1/responses`: the response, and its output items.

What one output makes is a reasoning item (empty but for the operator, or with the thought sealed), a message, and function
calls. Their ids hold the id of the response, which is how sealed thoughts are kept with what followed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinkserve.gateway.api.responses_input import ResponsesRequest
from thinkserve.gateway.choice import Choice
from thinkserve.gateway.endpoint import Answer, Call, Head, Text
from thinkserve.gateway.wire import Logprob, TokenLogprob, Usage

Item = dict[str, Any]
# Why a response is incomplete, by what ended it.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseBody:
    """Writes the body of one answer, whole or as far as it has come."""

    def __init__(self, head: Head) -> None:
        request = head.request
        assert isinstance(request, ResponsesRequest)
        self._head = head
        self._told = request.told
        self._name = head.id.removeprefix("resp_")
        self.thinks = request.effort != "none"
        """Whether there is a reasoning item, the first."""
        self.reasoning_id = f"rs_{self._name}"

    def message_id(self, at: int) -> str:
        """The id of a message; nearly all responses have one at most."""
        return f"msg_{self._name}_{at}" if at else f"msg_{self._name}"

    def call_id(self, at: int) -> str:
        """The id of the item of a call (the call itself has another)."""
        return f"fc_{self._name}_{at}"

    def sealed(self, choice: Choice) -> str | None:
        """The thought of an answer, if the client is to have it sealed."""
        if self._head.seal is None or not self.thinks:
            return None
        return self._head.seal(choice.first_thought, self._name)

    def whole(self, answer: Answer, sealed: str | None, usage: Usage) -> dict[str, Any]:
        """The response, when it is over."""
        assert answer.choice is not None
        status = status_of(answer.choice)
        incomplete = _INCOMPLETE.get(answer.choice.finish_reason or "")
        return self.response(
            status,
            self.items(answer, sealed, status),
            incomplete_details=incomplete and {"reason": incomplete},
            usage={
                "input_tokens": usage.prompt,
                # What of the prompt was cached would tell what other clients ask.
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.completion,
            },
        )

    def response(self, status: str, items: list[Item], **more: Any) -> dict[str, Any]:
        """The response in some state, with the items it has by then."""
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._head.model,
            "output": items,
            "usage": None,
            **self._told,
            **more,
        }

    def items(self, answer: Answer, sealed: str | None, status: str) -> list[Item]:
        """The items of an answer; the last has the status of the whole."""
        items = [self.reasoning_item(answer, sealed)] if self.thinks else []
        texts, calls = 0, 0
        for part in answer.parts or ([Text()] if is_empty(answer) else []):
            if isinstance(part, Call):
                items.append(call_item(self.call_id(calls), part))
                calls += 1
            else:
                items.append(message_item(self.message_id(texts), part))
                texts += 1
        if items and "status" in items[-1]:
            items[-1]["status"] = status
        return items

    def reasoning_item(self, answer: Answer, sealed: str | None) -> Item:
        """The item that stands for the thought."""
        item: Item = {"id": self.reasoning_id, "type": "reasoning", "summary": []}
        if self._head.reveal:
            item["content"] = [{"type": "reasoning_text", "text": answer.thought}]
        if sealed is not None:
            item["encrypted_content"] = sealed
        return item


def status_of(choice: Choice) -> str:
    """The status of a response that is over."""
    return "incomplete" if choice.finish_reason in _INCOMPLETE else "completed"


def is_empty(answer: Answer) -> bool:
    """Whether the response is complete and nothing: there is an empty message then."""
    return not answer.parts and answer.choice is not None and status_of(answer.choice) == "completed"


def message_item(id: str, text: Text) -> Item:
    """The item of a text."""
    part = text_part(text)
    return {"id": id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def text_part(text: Text) -> Item:
    """The one part of a message."""
    return {
        "type": "output_text",
        "text": str(text),
        "annotations": [],
        "logprobs": logprobs_json(text.logprobs),
    }


def logprobs_json(entries: Sequence[TokenLogprob]) -> list[Item]:
    """Logprobs in the form of this API, which must tell the bytes of a token."""
    return [_logprob(entry) | {"top_logprobs": list(map(_logprob, entry.top_logprobs))} for entry in entries]


def _logprob(entry: TokenLogprob | Logprob) -> Item:
    raw = list(entry.token.encode()) if entry.bytes is None else entry.bytes
    return {"token": entry.token, "bytes": raw, "logprob": entry.logprob}


def call_item(id: str, call: Call) -> Item:
    """The item of a tool call."""
    return {
        "id": id,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }
