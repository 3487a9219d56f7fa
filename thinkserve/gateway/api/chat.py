"""`POST /v1/chat/completions`: OpenAI's chat completions.

A stream's events are made by putting the JSON of a text between two byte strings made once a choice: an event costs one
string encoding.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.constraints import Constraint
from thinkserve.gateway.endpoint import Answer, Call, Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import (
    DROP,
    ENGINE_EXTRAS,
    NO_EFFECT,
    REFUSE,
    REWRITE,
    SAMPLING,
    Check,
    Field,
    Fields,
    boolean,
    integer,
    json_array,
    json_object,
    one_of,
    read_fields,
    stop_strings,
    stream_options,
    string,
)
from thinkserve.gateway.request import EFFORTS, Request, check_choices
from thinkserve.gateway.tool_fields import read_tools, tool_choice
from thinkserve.gateway.tools import CallDelta
from thinkserve.gateway.wire import TokenLogprob, Usage, encode


def _read_response_format(name: str, value: Any) -> Constraint | None:
    """What the response must fit, or None for plain text."""
    checked = json_object(name, value)
    match checked.get("type"):
        case "text":
            return None
        case "json_object":
            return Constraint("json_schema", {"type": "object"})
        case "json_schema":
            described = checked.get("json_schema")
            schema = described.get("schema", {}) if isinstance(described, dict) else None
            if not isinstance(schema, dict):
                raise invalid(f"{name}.json_schema", f"{name}.json_schema must be an object with a schema")
            return Constraint("json_schema", schema)
        case other:
            raise invalid(
                f"{name}.type", f"{name}.type must be text, json_object or json_schema, not {shown(other)}"
            )


response_format = Check(
    {
        "type": "object",
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
        "required": ["type"],
    },
    _read_response_format,
)

_KINDS = {"json": "json_schema", "regex": "regex", "grammar": "grammar", "choice": "choice"}


def _read_structured_outputs(name: str, value: Any) -> Constraint:
    """vLLM's own form of a constraint: one of json, regex, grammar and choice."""
    given = {key: item for key, item in json_object(name, value).items() if item is not None}
    if len(given) != 1 or not given.keys() <= _KINDS.keys():
        raise invalid(name, f"{name} must hold one of {', '.join(_KINDS)}, not {shown(sorted(given))}")
    ((key, item),) = given.items()
    wanted = {"json": dict, "choice": list}.get(key, str)
    strings = key != "choice" or (item and all(isinstance(one, str) and one for one in item))
    if not isinstance(item, wanted) or (item in ("", [])) or not strings:
        what = {"json": "a JSON schema", "choice": "an array of strings"}.get(key, "a string")
        raise invalid(f"{name}.{key}", f"{name}.{key} must be {what}, not {shown(item)}")
    return Constraint(_KINDS[key], item)


structured_outputs = Check(
    {
        "type": "object",
        "properties": {
            "json": {"type": "object"},
            "regex": {"type": "string"},
            "grammar": {"type": "string"},
            "choice": {"type": "array", "items": {"type": "string"}},
        },
        "minProperties": 1,
        "maxProperties": 1,
    },
    _read_structured_outputs,
)

FIELDS: Fields = {
    # OpenAI's fields
    "model": Field(REWRITE, "must name the model that is served", string),
    "messages": Field(
        REWRITE,
        "the thought prompt is put round the last user message; thoughts are taken out",
        Check({"type": "array", "items": {"type": "object"}, "minItems": 1}, lambda name, value: value),
    ),
    "stream": Field(REWRITE, "the engine is always asked to stream", boolean),
    "stream_options": Field(REWRITE, "`include_usage`", stream_options),
    "n": Field(REWRITE, "each choice is a request of its own to the engine", integer(1, 128)),
    "stop": Field(REWRITE, "matched by the gateway, on the response only", stop_strings),
    "max_tokens": Field(REWRITE, "bounds the response", integer(1, 2**31 - 1)),
    "max_completion_tokens": Field(REWRITE, "bounds thought and response together", integer(1, 2**31 - 1)),
    "reasoning_effort": Field(
        REWRITE, "bounds the thought; `none` asks for a response without one", one_of(*EFFORTS)
    ),
    "thinking_token_budget": Field(
        REWRITE, "bounds the thought, in tokens (vLLM's name for it)", integer(1, 2**31 - 1)
    ),
    "logprobs": Field(REWRITE, "of exactly the tokens of the response", boolean),
    "top_logprobs": Field(REWRITE, "of exactly the tokens of the response", integer(0, 20)),
    "response_format": Field(REWRITE, "binds the response only; the thought stays free", response_format),
    "structured_outputs": Field(
        REWRITE,
        "`json`, `regex`, `grammar` or `choice` binds the response only; the thought stays free",
        structured_outputs,
    ),
    "tools": Field(REWRITE, "calls are read out of the response only", json_array),
    "tool_choice": Field(REWRITE, "binds the response only; the thought stays free", tool_choice),
    "parallel_tool_calls": Field(REWRITE, "false: one call at most", boolean),
    **SAMPLING,
    **NO_EFFECT,
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
    "suffix": Field(
        REFUSE, "it changes the prompt or where the output begins, which decides what is a thought"
    ),
}


class ChatCompletions:
    """The endpoint; keeps the `Endpoint` protocol."""

    path = "/v1/chat/completions"
    fields = FIELDS

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    def new_id(self) -> str:
        return f"chatcmpl-{secrets.token_hex(12)}"

    def read(self, data: Mapping[str, Any]) -> Request:
        config = self._config
        values = read_fields(data, FIELDS, config.allow_fields)
        given, sampling = values.rewritten, values.passed
        messages = given.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid(
                "messages", f"messages must be an array with at least one message, not {shown(messages)}"
            )
        check_choices("n", given.get("n", 1), config.max_choices)
        if "stream_options" in given and not given.get("stream"):
            raise invalid("stream_options", "stream_options is for stream: true only")
        logprobs = given.get("logprobs", False)
        if given.get("top_logprobs") and not logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
        constraint = given.get("response_format")
        if "structured_outputs" in given:
            if constraint is not None:
                raise invalid("structured_outputs", "give response_format or structured_outputs, not both")
            constraint = given["structured_outputs"]
        return Request(
            conversations=(messages,),
            model=given.get("model"),
            stream=given.get("stream", False),
            include_usage=given.get("stream_options", False),
            n=given.get("n", 1),
            stops=given.get("stop", ()),
            max_tokens=given.get("max_tokens"),
            max_completion_tokens=given.get("max_completion_tokens"),
            effort=given.get("reasoning_effort"),
            thought_tokens=given.get("thinking_token_budget"),
            logprobs=logprobs,
            top_logprobs=given.get("top_logprobs", 0),
            constraint=constraint,
            tools=read_tools(
                given.get("tools"),
                given.get("tool_choice"),
                parallel=given.get("parallel_tool_calls", True),
                format=config.tool_format,
            ),
            seed=sampling.pop("seed", None),
            sampling=sampling,
            extra=values.allowed,
        )

    def writer(self, head: Head) -> ChatWriter:
        return ChatWriter(head)

    def error(self, error: ApiError) -> bytes:
        return error.body()


def finish_reason(choice: Choice) -> str | None:
    """OpenAI's word for why a choice ended."""
    return "tool_calls" if choice.calls and choice.finish_reason == "stop" else choice.finish_reason


class ChatWriter:
    """Writes an answer as chat completions; keeps the `Writer` protocol."""

    keepalive = b": thinking\n\n"

    def __init__(self, head: Head) -> None:
        request = head.request
        self._head = head
        base = {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
        }
        self._prefix = b"data: " + encode(base)[:-1] + b',"choices":['
        # Where usage was asked for, OpenAI puts a null on every chunk but the last.
        self._suffix = b'],"usage":null}\n\n' if request.include_usage else b"]}\n\n"
        self._before = [
            self._prefix + b'{"index":%d,"delta":{"content":' % index for index in range(request.choices)
        ]
        self._after = b'},"logprobs":null,"finish_reason":null}' + self._suffix
        self._logprobs = request.logprobs

    def head(self) -> bytes:
        roles = {"role": "assistant", "content": ""}
        return b"".join(self._delta(index, roles) for index in range(self._head.request.choices))

    def begin(self, index: int, choice: Choice) -> bytes:
        return b""

    def text(self, index: int, visible: Visible) -> bytes:
        calls = b"".join(self._delta(index, {"tool_calls": [_call_delta(delta)]}) for delta in visible.calls)
        if not visible.text:
            return calls
        if self._logprobs:
            return self._delta(index, {"content": visible.text}, visible.logprobs) + calls
        return self._before[index] + encode(visible.text) + self._after + calls

    def thought(self, index: int, text: str) -> bytes:
        return self._delta(index, {"reasoning_content": text})

    def end_choice(self, index: int, choice: Choice) -> bytes:
        more: dict[str, Any] = {"incomplete_details": {"reason": choice.lost_to}} if choice.lost_to else {}
        return self._delta(index, {}, finish=finish_reason(choice), **more)

    def end(self, usage: Usage) -> bytes:
        last = b""
        if self._head.request.include_usage:
            last = self._prefix + b'],"usage":' + encode(usage.as_completion()) + b"}\n\n"
        return last + b"data: [DONE]\n\n"

    def fail(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] | None = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
            "finish_reason": finish,
            **more,
        }
        return self._prefix + encode(choice) + self._suffix

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage.as_completion(),
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = answer.choice
        assert choice is not None
        # As at OpenAI, an answer that is nothing but calls has no content.
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text or not answer.calls else None,
            "refusal": None,
        }
        if answer.calls:
            message["tool_calls"] = [call_json(call) for call in answer.calls]
        if self._head.reveal:
            message["reasoning_content"] = answer.thought
        written = {
            "index": index,
            "message": message,
            "logprobs": {"content": answer.logprobs, "refusal": None} if self._logprobs else None,
            "finish_reason": finish_reason(choice),
        }
        if choice.lost_to:
            written["incomplete_details"] = {"reason": choice.lost_to}
        return written


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
