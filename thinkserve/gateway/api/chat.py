"""`POST /v1/chat/completions`: OpenAI's chat completions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.gateway.api.completion import FIELDS as SHARED
from thinkserve.gateway.api.completion import CompletionWriter, incomplete, shared
from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Answer, Call, Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import (
    DROP,
    ENGINE_EXTRAS,
    PROMPT,
    REFUSE,
    REWRITE,
    Check,
    Field,
    Fields,
    boolean,
    integer,
    json_array,
    one_of,
    read_fields,
)
from thinkserve.gateway.request import Request, check_choices
from thinkserve.gateway.tool_fields import read_tools, tool_choice
from thinkserve.gateway.tools import CallDelta, Part
from thinkserve.gateway.wire import TokenLogprob, Usage, encode

FIELDS: Fields = {
    **SHARED,
    "messages": Field(
        REWRITE,
        "the thought prompt is put round the last user message; thoughts are taken out",
        Check({"type": "array", "items": {"type": "object"}, "minItems": 1}, lambda name, value: value),
    ),
    "max_tokens": Field(REWRITE, "bounds the response", integer(1, 2**31 - 1)),
    "max_completion_tokens": Field(REWRITE, "bounds thought and response together", integer(1, 2**31 - 1)),
    "logprobs": Field(REWRITE, "of exactly the tokens of the response", boolean),
    "top_logprobs": Field(REWRITE, "of exactly the tokens of the response", integer(0, 20)),
    "tools": Field(REWRITE, "calls are read out of the response only", json_array),
    "tool_choice": Field(REWRITE, "binds the response only; the thought stays free", tool_choice),
    "parallel_tool_calls": Field(REWRITE, "false: one call at most", boolean),
    "modalities": Field(DROP, "text only", one_of(["text"])),
    "verbosity": Field(DROP, "`medium`, which changes nothing", one_of("medium")),
    "audio": Field(REFUSE, "this model writes text only"),
    "prediction": Field(REFUSE, "predicted outputs are not supported"),
    "web_search_options": Field(REFUSE, "there is no web search"),
    "functions": Field(REFUSE, "functions are deprecated at OpenAI; use tools"),
    "function_call": Field(REFUSE, "functions are deprecated at OpenAI; use tool_choice"),
    **ENGINE_EXTRAS,
    "echo": Field(REFUSE, "it shows the thought prompt"),
    "best_of": Field(REFUSE, "use n"),
    "suffix": Field(REFUSE, PROMPT),
}


class ChatCompletions:
    """The endpoint; keeps the `Endpoint` protocol."""

    path = "/v1/chat/completions"
    fields = FIELDS
    required: tuple[str, ...] = ("messages",)

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    def new_id(self) -> str:
        return f"chatcmpl-{secrets.token_hex(12)}"

    def read(self, data: Mapping[str, Any]) -> Request:
        config = self._config
        values = read_fields(data, FIELDS, config.allow_fields)
        given = values.rewritten
        messages = given.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid(
                "messages", f"messages must be an array with at least one message, not {shown(messages)}"
            )
        check_choices("n", given.get("n", 1), config.max_choices)
        logprobs = given.get("logprobs", False)
        if given.get("top_logprobs") and not logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
        return Request(
            **shared(values),
            conversations=(messages,),
            max_completion_tokens=given.get("max_completion_tokens"),
            logprobs=logprobs,
            top_logprobs=given.get("top_logprobs", 0),
            tools=read_tools(
                given.get("tools"),
                given.get("tool_choice"),
                parallel=given.get("parallel_tool_calls", True),
                format=config.tool_format,
            ),
        )

    def writer(self, head: Head) -> ChatWriter:
        return ChatWriter(head)

    def error(self, error: ApiError) -> bytes:
        return error.body()


def finish_reason(choice: Choice) -> str | None:
    """OpenAI's word for why a choice ended."""
    return "tool_calls" if choice.calls and choice.finish_reason == "stop" else choice.finish_reason


class ChatWriter(CompletionWriter):
    """Writes an answer as chat completions; keeps the `Writer` protocol."""

    def __init__(self, head: Head) -> None:
        super().__init__(head, "chat.completion.chunk")
        self._before = [
            self._prefix + b'{"index":%d,"delta":{"content":' % index for index in range(head.request.choices)
        ]

    def head(self) -> bytes:
        roles = {"role": "assistant", "content": ""}
        return b"".join(self._delta(index, roles) for index in range(self._head.request.choices))

    def text(self, index: int, visible: Visible) -> bytes:
        if self._logprobs:  # there are no tools then
            return self._delta(index, {"content": visible.text}, visible.logprobs)
        text = self._content(index, visible.text) if visible.text else b""
        if not visible.behind:
            return text
        return text + b"".join(self._part(index, part) for part in visible.behind)

    def _content(self, index: int, text: str) -> bytes:
        return self._before[index] + encode(text) + b"}" + self._after

    def _part(self, index: int, part: Part) -> bytes:
        if isinstance(part, str):
            return self._content(index, part)
        return self._delta(index, {"tool_calls": [_call_delta(part)]})

    def thought(self, index: int, text: str) -> bytes:
        return self._delta(index, {"reasoning_content": text})

    def end_choice(self, index: int, choice: Choice) -> bytes:
        return self._delta(index, {}, finish=finish_reason(choice), **incomplete(choice))

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] | None = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        listed = None if logprobs is None else {"content": logprobs, "refusal": None}
        return self._chunk(
            {"index": index, "delta": delta, "logprobs": listed, "finish_reason": finish, **more}
        )

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        return self._base | {
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage.as_completion(),
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = answer.choice
        assert choice is not None
        # As at OpenAI, an answer that is nothing but calls has no content.
        text, calls = answer.text, answer.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not calls else None,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = list(map(call_json, calls))
        if self._head.reveal:
            message["reasoning_content"] = answer.thought
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": answer.logprobs, "refusal": None} if self._logprobs else None,
            "finish_reason": finish_reason(choice),
            **incomplete(choice),
        }


def call_json(call: Call) -> dict[str, Any]:
    """A tool call of a whole message."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _call_delta(delta: CallDelta) -> dict[str, Any]:
    if delta.id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
