"""JSON Schemas for `openapi.json`: what answers and errors look like, and what the items of a request do.

The tables of the endpoints say what a field is; here is what lies inside those whose items are read further on
(`history.py`, `tool_fields.py`), by the path of the endpoint and the name of the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinkserve.gateway.history import DROPPED, ROLES
from thinkserve.gateway.tool_fields import MOST_TOOLS

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}


def record(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object that holds these keys, perhaps the optional ones, and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def holding(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object that holds these keys, perhaps the optional ones, and whatever else."""
    return {
        key: value for key, value in record(optional, **required).items() if key != "additionalProperties"
    }


def array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def const(value: object) -> Schema:
    return {"const": value}


def nullable(schema: Schema) -> Schema:
    """Also null."""
    if not schema:
        return schema
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


# What is inside the fields of requests

# More keys with nothing in them are what clients send that keep every field.
_EMPTY: Schema = {"type": "null"}
_TEXT_PART = holding(type=const("text"), text=STRING)
_CALL = holding({"type": const("function")}, id=STRING, function=holding(name=STRING, arguments=STRING))


_CONTENT: Schema = {"anyOf": [STRING, array(_TEXT_PART, minItems=1)]}


def _chat_message(role: str) -> Schema:
    optional: dict[str, Schema] = {name: ANY for name in sorted(DROPPED)}
    optional["name"] = nullable(STRING)
    required: dict[str, Schema] = {"role": const(role)}
    if role == "assistant":
        optional |= {"content": nullable(_CONTENT), "tool_calls": nullable(array(_CALL))}
    else:
        required["content"] = _CONTENT
    if role == "tool":
        required["tool_call_id"] = STRING
    return {**record(optional, **required), "additionalProperties": _EMPTY}


_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}
_FUNCTION = holding(
    {"description": nullable(STRING), "parameters": {"type": ["object", "null"]}, "strict": ANY}, name=_NAME
)


def _item(kind: str, optional: Mapping[str, Schema], **required: Schema) -> Schema:
    known = {"id": ANY, "status": ANY, **optional}
    return {**record(known, type=const(kind), **required), "additionalProperties": _EMPTY}


def _input_message(role: str, part: str) -> Schema:
    content: Schema = {"anyOf": [STRING, array(holding(type=const(part), text=STRING), minItems=1)]}
    known: dict[str, Schema] = {"type": {"enum": ["message", None]}, "id": ANY, "status": ANY, "phase": ANY}
    return {**record(known, role=const(role), content=content), "additionalProperties": _EMPTY}


_OUTPUT: Schema = {"anyOf": [STRING, array(holding(type=const("input_text"), text=STRING), minItems=1)]}
_ITEMS = [
    *(_input_message(role, "input_text") for role in ("user", "system", "developer")),
    _input_message("assistant", "output_text"),
    _item("reasoning", {"summary": ANY, "content": ANY, "encrypted_content": nullable(STRING)}),
    _item("function_call", {}, call_id=STRING, name=STRING, arguments=STRING),
    _item("function_call_output", {}, call_id=STRING, output=_OUTPUT),
]

INSIDE: Mapping[tuple[str, str], Schema] = {
    ("/v1/chat/completions", "messages"): array(
        {"anyOf": [_chat_message(role) for role in ROLES]}, minItems=1
    ),
    ("/v1/chat/completions", "tools"): array(
        holding(type=const("function"), function=_FUNCTION), maxItems=MOST_TOOLS
    ),
    ("/v1/responses", "input"): {"anyOf": [STRING, array({"anyOf": _ITEMS}, minItems=1)]},
    ("/v1/responses", "tools"): array(
        {**_FUNCTION, "properties": {"type": const("function"), **_FUNCTION["properties"]}}
        | {"required": ["type", "name"]},
        maxItems=MOST_TOOLS,
    ),
}
"""By path and field: more than the table says."""

# Answers

_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter"]}
_LOST: dict[str, Schema] = {"incomplete_details": record(reason=STRING)}
_TOKEN = {
    "token": STRING,
    "logprob": {"type": "number"},
    "bytes": nullable(array({"type": "integer", "minimum": 0, "maximum": 255})),
}
_LOGPROBS = record(
    content=nullable(array(record(**_TOKEN, top_logprobs=array(record(**_TOKEN))))), refusal={"type": "null"}
)
_USAGE = record(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    completion_tokens_details=record(reasoning_tokens=COUNT),
)
_REVEALED: Schema = {"type": "string", "description": "The thought, for operators who ask."}
_CHAT = record(
    id=STRING,
    object=const("chat.completion"),
    created=COUNT,
    model=STRING,
    choices=array(
        record(
            _LOST,
            index=COUNT,
            message=record(
                {"tool_calls": array(_CALL, minItems=1), "reasoning_content": _REVEALED},
                role=const("assistant"),
                content=nullable(STRING),
                refusal={"type": "null"},
            ),
            logprobs=nullable(_LOGPROBS),
            finish_reason=_FINISH,
        ),
        minItems=1,
    ),
    usage=_USAGE,
)
_TEXT = record(
    id=STRING,
    object=const("text_completion"),
    created=COUNT,
    model=STRING,
    choices=array(
        record(
            {**_LOST, "reasoning": _REVEALED},
            index=COUNT,
            text=STRING,
            logprobs=nullable(
                record(
                    tokens=array(STRING),
                    token_logprobs=array({"type": "number"}),
                    top_logprobs=array({"type": "object", "additionalProperties": {"type": "number"}}),
                    text_offset=array(COUNT),
                )
            ),
            finish_reason=_FINISH,
        ),
        minItems=1,
    ),
    usage=_USAGE,
)
_OUTPUT_ITEMS = [
    record(
        {"content": array(record(type=const("reasoning_text"), text=STRING)), "encrypted_content": STRING},
        id=STRING,
        type=const("reasoning"),
        summary=array(ANY, maxItems=0),
    ),
    record(
        id=STRING,
        type=const("message"),
        status={"enum": ["completed", "incomplete"]},
        role=const("assistant"),
        content=array(
            record(type=const("output_text"), text=STRING, annotations=array(ANY), logprobs=array(ANY))
        ),
    ),
    record(
        id=STRING,
        type=const("function_call"),
        status={"enum": ["completed", "incomplete"]},
        call_id=STRING,
        name=STRING,
        arguments=STRING,
    ),
]
_RESPONSE = holding(
    id=STRING,
    object=const("response"),
    created_at=COUNT,
    status={"enum": ["completed", "incomplete"]},
    error={"type": "null"},
    incomplete_details=nullable(record(reason={"enum": ["max_output_tokens", "content_filter"]})),
    model=STRING,
    output=array({"anyOf": _OUTPUT_ITEMS}),
    usage=holding(
        input_tokens=COUNT,
        output_tokens=COUNT,
        output_tokens_details=record(reasoning_tokens=COUNT),
        total_tokens=COUNT,
    ),
    parallel_tool_calls={"type": "boolean"},
    tool_choice=ANY,
    tools=array({"type": "object"}),
)
_MESSAGE = record(
    id=STRING,
    type=const("message"),
    role=const("assistant"),
    model=STRING,
    content=array(
        {
            "anyOf": [
                record(type=const("text"), text=STRING),
                record(type=const("tool_use"), id=STRING, name=STRING, input={"type": "object"}),
                {
                    **record(type=const("thinking"), thinking=STRING, signature=STRING),
                    "description": "The thought, for operators who ask.",
                },
            ]
        }
    ),
    stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]},
    stop_sequence=nullable(STRING),
    usage=record(
        input_tokens=COUNT, output_tokens=COUNT, output_tokens_details=record(thinking_tokens=COUNT)
    ),
)
ANSWERS: Mapping[str, Schema] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _TEXT,
    "/v1/responses": _RESPONSE,
    "/v1/messages": _MESSAGE,
}
"""The body of an answer that is not streamed, by path."""

ERROR = record(error=record(message=STRING, type=STRING, param=nullable(STRING), code=nullable(STRING)))
ANTHROPIC_ERROR = record(
    {"request_id": STRING},
    type=const("error"),
    error=record(
        type={
            "enum": [
                *("invalid_request_error", "authentication_error", "permission_error", "not_found_error"),
                *("request_too_large", "rate_limit_error", "api_error", "timeout_error", "overloaded_error"),
            ]
        },
        message=STRING,
    ),
)
MODEL = record(id=STRING, object=const("model"), created=COUNT, owned_by=STRING)
MODELS = record(object=const("list"), data=array(MODEL))
