"""What chat completions and completions have in common: most of their fields, and how a stream of theirs is written.

A stream's events are made by putting the JSON of a text between two byte strings made once a choice: an event costs one
string encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thinkserve.gateway.choice import Choice
from thinkserve.gateway.constraints import Constraint
from thinkserve.gateway.endpoint import Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import (
    NO_EFFECT,
    REWRITE,
    SAMPLING,
    Check,
    Field,
    Fields,
    Values,
    boolean,
    integer,
    json_object,
    one_of,
    stop_strings,
    stream_options,
    string,
)
from thinkserve.gateway.request import EFFORTS
from thinkserve.gateway.wire import Usage, encode


def read_format(
    name: str, value: Any, schema: Callable[[dict[str, Any]], dict[str, Any]]
) -> Constraint | None:
    """What the response must fit by a format of OpenAI's, or None for plain text.

    Args:
        name: the field.
        value: text, json_object or json_schema, by its `type`.
        schema: finds the JSON schema in a format of the type json_schema.

    Raises:
        ApiError: 400, it is none of these.
    """
    checked = json_object(name, value)
    match checked.get("type"):
        case "text":
            return None
        case "json_object":
            return Constraint("json_schema", {"type": "object"}, name)
        case "json_schema":
            return Constraint("json_schema", schema(checked), name)
        case other:
            raise invalid(
                f"{name}.type", f"{name}.type must be text, json_object or json_schema, not {shown(other)}"
            )


FORMAT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
    "required": ["type"],
}


def _read_response_format(name: str, value: Any) -> Constraint | None:
    def schema(format: dict[str, Any]) -> dict[str, Any]:
        described = format.get("json_schema")
        found = described.get("schema", {}) if isinstance(described, dict) else None
        if not isinstance(found, dict):
            raise invalid(f"{name}.json_schema", f"{name}.json_schema must be an object with a schema")
        return found

    return read_format(name, value, schema)


response_format = Check(FORMAT_SCHEMA, _read_response_format)

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
    return Constraint(_KINDS[key], item, name)


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
    "model": Field(REWRITE, "must name the model that is served", string),
    "stream": Field(REWRITE, "the engine is always asked to stream", boolean),
    "stream_options": Field(REWRITE, "`include_usage`", stream_options),
    "n": Field(REWRITE, "each choice is a request of its own to the engine", integer(1, 128)),
    "stop": Field(REWRITE, "matched by the gateway, on the response only", stop_strings),
    "reasoning_effort": Field(
        REWRITE, "bounds the thought; `none` asks for a response without one", one_of(*EFFORTS)
    ),
    "thinking_token_budget": Field(
        REWRITE, "bounds the thought, in tokens (vLLM's name for it)", integer(1, 2**31 - 1)
    ),
    "response_format": Field(REWRITE, "binds the response only; the thought stays free", response_format),
    "structured_outputs": Field(
        REWRITE,
        "`json`, `regex`, `grammar` or `choice` binds the response only; the thought stays free",
        structured_outputs,
    ),
    **SAMPLING,
    **NO_EFFECT,
}
"""The fields that both take."""


def only_constraint(given: dict[str, Any], format: str, asked: Constraint | None) -> Constraint | None:
    """The one constraint of a request, of the two ways to ask for one.

    Args:
        given: the fields.
        format: what OpenAI's way is called.
        asked: what was asked in that way.

    Raises:
        ApiError: 400, it was asked for in both.
    """
    constraint: Constraint | None = given.get("structured_outputs")
    if asked is not None and constraint is not None:
        raise invalid("structured_outputs", f"give {format} or structured_outputs, not both")
    return constraint or asked


def shared(values: Values) -> dict[str, Any]:
    """What those fields are in a `Request`.

    Raises:
        ApiError: 400, two of them do not go together.
    """
    given, sampling = values.rewritten, dict(values.passed)
    if "stream_options" in given and not given.get("stream"):
        raise invalid("stream_options", "stream_options is for stream: true only")
    return {
        "model": given.get("model"),
        "stream": given.get("stream", False),
        "include_usage": given.get("stream_options", False),
        "n": given.get("n", 1),
        "stops": given.get("stop", ()),
        "max_tokens": given.get("max_tokens"),
        "effort": given.get("reasoning_effort"),
        "thought_tokens": given.get("thinking_token_budget"),
        "constraint": only_constraint(given, "response_format", given.get("response_format")),
        "seed": sampling.pop("seed", None),
        "sampling": sampling,
        "extra": values.allowed,
    }


class CompletionWriter:
    """What both write alike.

    Args:
        head: what all events and bodies of the answer say.
        kind: what an event of a stream calls itself (`object`).
    """

    keepalive = b": thinking\n\n"

    def __init__(self, head: Head, kind: str) -> None:
        self._head = head
        self._base = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
        self._prefix = b"data: " + encode(self._base)[:-1] + b',"choices":['
        # Where usage was asked for, OpenAI puts a null on every chunk but the last.
        self._suffix = b'],"usage":null}\n\n' if head.request.include_usage else b"]}\n\n"
        self._after = b',"logprobs":null,"finish_reason":null}' + self._suffix
        self._logprobs = head.request.logprobs

    def begin(self, index: int, choice: Choice) -> bytes:
        return b""

    def end(self, usage: Usage) -> bytes:
        last = b""
        if self._head.request.include_usage:
            last = self._prefix + b'],"usage":' + encode(usage.as_completion()) + b"}\n\n"
        return last + b"data: [DONE]\n\n"

    def fail(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._prefix + encode(choice) + self._suffix


def incomplete(choice: Choice) -> dict[str, Any]:
    """What a choice has beside its finish reason, where its response was lost before it began."""
    return {"incomplete_details": {"reason": choice.lost_to}} if choice.lost_to else {}
