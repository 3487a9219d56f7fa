"""The fields of `/v1/responses`: its table, and the checks that only it has."""

from __future__ import annotations

from typing import Any

from thinkserve.gateway.api.completion import FORMAT_SCHEMA, read_format, structured_outputs
from thinkserve.gateway.constraints import Constraint
from thinkserve.gateway.errors import invalid, shown
from thinkserve.gateway.fields import (
    DROP,
    ENGINE_EXTRAS,
    NO_EFFECT,
    PROMPT,
    RAW,
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
    stop_strings,
    stream_options,
    string,
)
from thinkserve.gateway.request import EFFORTS
from thinkserve.gateway.tools import ToolName

SEALED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
# Parts of items that there are none of here, so nothing is missing from an answer.
_OF_OTHER_ITEMS = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


def _only(taken: object, why: str) -> Check:
    """One value; any other is refused with the reason."""

    def read(name: str, value: Any) -> Any:
        if value != taken or type(value) is not type(taken):
            raise invalid(name, f"{name} {shown(value)} is refused: {why}")
        return value

    return Check({"const": taken}, read)


def _read_include(name: str, value: Any) -> frozenset[str]:
    known = (SEALED, LOGPROBS, *_OF_OTHER_ITEMS)
    if not isinstance(value, list):
        raise invalid(name, f"{name} must be an array, not {shown(value)}")
    for at, item in enumerate(value):
        if not isinstance(item, str) or item not in known:
            raise invalid(f"{name}[{at}]", f"{name}[{at}] must be {SEALED} or {LOGPROBS}, not {shown(item)}")
    return frozenset(value)


include = Check(
    {"type": "array", "items": {"enum": [SEALED, LOGPROBS, *_OF_OTHER_ITEMS]}},
    _read_include,
)

_summary = _only("auto", "there are no summaries of thoughts; leave it out")


def _read_reasoning(name: str, value: Any) -> str | None:
    """The effort."""
    effort = None
    for key, item in json_object(name, value).items():
        if key not in ("effort", "summary", "generate_summary"):
            raise invalid(f"{name}.{key[:100]}", f"{name}.{key[:100]} is not supported; effort is")
        if item is None:
            continue
        if key == "effort":
            effort = one_of(*EFFORTS)(f"{name}.{key}", item)
        else:
            _summary(f"{name}.{key}", item)
    return effort


reasoning = Check(
    {
        "type": "object",
        "properties": {
            "effort": {"enum": [*EFFORTS, None]},
            "summary": {"enum": ["auto", None]},
            "generate_summary": {"enum": ["auto", None]},
        },
        "additionalProperties": False,
    },
    _read_reasoning,
)


def _read_format(name: str, value: Any) -> Constraint | None:
    def schema(format: dict[str, Any]) -> dict[str, Any]:
        string(f"{name}.name", format.get("name"))
        found: dict[str, Any] = json_object(f"{name}.schema", format.get("schema"))
        return found

    return read_format(name, value, schema)


_verbosity = _only("medium", "only medium is taken, which changes nothing; ask in the prompt")


def _read_text(name: str, value: Any) -> Constraint | None:
    constraint = None
    for key, item in json_object(name, value).items():
        if key not in ("format", "verbosity"):
            raise invalid(f"{name}.{key[:100]}", f"{name}.{key[:100]} is not supported; format is")
        if item is None:
            continue
        if key == "format":
            constraint = _read_format(f"{name}.{key}", item)
        else:
            _verbosity(f"{name}.{key}", item)
    return constraint


text = Check(
    {
        "type": "object",
        "properties": {
            "format": FORMAT_SCHEMA,
            "verbosity": {"enum": ["medium", None]},
        },
        "additionalProperties": False,
    },
    _read_text,
)


def _read_tool_choice(name: str, value: Any) -> str | ToolName:
    if value in ("none", "auto", "required"):
        return str(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "function" or not isinstance(value.get("name"), str):
        raise invalid(
            name,
            f'{name} must be none, auto, required or {{"type": "function", "name": ...}}, not {shown(value)}',
        )
    return ToolName(value["name"])


tool_choice = Check(
    {
        "anyOf": [
            {"enum": ["none", "auto", "required"]},
            {
                "type": "object",
                "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
                "required": ["type", "name"],
            },
        ]
    },
    _read_tool_choice,
)

_RESEND = "nothing is stored here; send the whole conversation as input"

FIELDS: Fields = {
    # OpenAI's fields
    "model": Field(REWRITE, "must name the model that is served", string),
    "input": Field(
        REWRITE,
        "messages, reasoning items, function calls and their outputs; the thought prompt is put round the last user "
        "message; thoughts are taken out, but those that come back sealed",
        Check(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "object"}, "minItems": 1},
                ]
            },
            lambda name, value: value,
        ),
    ),
    "instructions": Field(REWRITE, "a system message before the input", string),
    "stream": Field(REWRITE, "the engine is always asked to stream", boolean),
    "max_output_tokens": Field(REWRITE, "bounds thought and response together", integer(1, 2**31 - 1)),
    "reasoning": Field(
        REWRITE, "`effort` bounds the thought; `none` asks for a response without one", reasoning
    ),
    "text": Field(REWRITE, "`format` binds the response only; the thought stays free", text),
    "tools": Field(REWRITE, "functions only; calls are read out of the response only", json_array),
    "tool_choice": Field(REWRITE, "binds the response only; the thought stays free", tool_choice),
    "parallel_tool_calls": Field(REWRITE, "false: one call at most", boolean),
    "include": Field(REWRITE, f"`{SEALED}` (where the operator gave keys) and `{LOGPROBS}`", include),
    "top_logprobs": Field(REWRITE, "of exactly the tokens of the response", integer(0, 20)),
    # From chat completions
    "stop": Field(REWRITE, "matched by the gateway, on the response only", stop_strings),
    "structured_outputs": Field(
        REWRITE,
        "`json`, `regex`, `grammar` or `choice` binds the response only; the thought stays free",
        structured_outputs,
    ),
    "thinking_token_budget": Field(
        REWRITE, "bounds the thought, in tokens (vLLM's name for it)", integer(1, 2**31 - 1)
    ),
    **SAMPLING,
    **NO_EFFECT,
    "store": Field(DROP, "nothing is stored; absent is false", _only(False, _RESEND)),
    "background": Field(DROP, "only false", _only(False, "answers come in the request that asks for them")),
    "truncation": Field(
        DROP, "only disabled", _only("disabled", "no input is left out; shorten the conversation yourself")
    ),
    "stream_options": Field(DROP, "usage is always told", stream_options),
    "max_tool_calls": Field(DROP, "is about OpenAI's built-in tools; there are none", integer(1, 2**31 - 1)),
    "previous_response_id": Field(REFUSE, _RESEND),
    "conversation": Field(REFUSE, _RESEND),
    "prompt": Field(REFUSE, "there are no stored prompt templates; write it into instructions and input"),
    "context_management": Field(REFUSE, "no input is left out; shorten the conversation yourself"),
    "moderation": Field(REFUSE, "there is no moderation"),
    "enable_response_messages": Field(REFUSE, RAW),
    "previous_input_messages": Field(REFUSE, PROMPT),
    **ENGINE_EXTRAS,
}
