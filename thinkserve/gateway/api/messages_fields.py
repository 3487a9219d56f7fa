"""The fields of `/v1/messages`: its table, and the checks that only it has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from thinkserve.gateway.api.messages_input import CACHE_CONTROL, known_keys, messages, system
from thinkserve.gateway.constraints import Constraint
from thinkserve.gateway.errors import invalid, shown
from thinkserve.gateway.fields import (
    DROP,
    ENGINE_EXTRAS,
    MAX_STOP,
    PASS,
    REFUSE,
    REWRITE,
    Check,
    Field,
    Fields,
    boolean,
    integer,
    json_array,
    json_object,
    number,
    one_of,
    string,
)
from thinkserve.gateway.tool_fields import MOST_TOOLS
from thinkserve.gateway.tools import Tool, ToolName

LEAST_BUDGET = 1024
MOST_STOPS = 16
# Anthropic's words for effort in those that the gateway has budgets for; its highest has no bound of its own.
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a client wants of the thought; `budget` is in tokens."""

    disabled: bool = False
    budget: int | None = None


def _read_thinking(name: str, value: Any) -> Thinking:
    given = json_object(name, value)
    kind = one_of("enabled", "disabled", "adaptive")(f"{name}.type", given.get("type"))
    keys = {"enabled": ("type", "budget_tokens", "display"), "adaptive": ("type", "display")}
    known_keys(name, given, keys.get(kind, ("type",)))
    if given.get("display") is not None:
        one_of("summarized", "omitted")(f"{name}.display", given["display"])
    if kind != "enabled":
        return Thinking(disabled=kind == "disabled")
    budget = integer(LEAST_BUDGET, 2**31 - 1)(f"{name}.budget_tokens", given.get("budget_tokens"))
    return Thinking(budget=budget)


_display = {
    "enum": ["summarized", "omitted", None],
    "description": "Taken; clients see no thought either way.",
}
thinking = Check(
    {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "type": {"const": "enabled"},
                    "budget_tokens": {"type": "integer", "minimum": LEAST_BUDGET, "maximum": 2**31 - 1},
                    "display": _display,
                },
                "required": ["type", "budget_tokens"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"const": "adaptive"}, "display": _display},
                "required": ["type"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"const": "disabled"}},
                "required": ["type"],
                "additionalProperties": False,
            },
        ]
    },
    _read_thinking,
)


class OutputConfig(NamedTuple):
    """The effort in the gateway's words, and what the response must fit."""

    effort: str | None = None
    constraint: Constraint | None = None


def _read_output_config(name: str, value: Any) -> OutputConfig:
    given = json_object(name, value)
    known_keys(name, given, ("effort", "format"))
    effort, format = given.get("effort"), given.get("format")
    if effort is not None:
        effort = _EFFORTS[one_of(*_EFFORTS)(f"{name}.effort", effort)]
    if format is None:
        return OutputConfig(effort)
    where = f"{name}.format"
    known_keys(where, json_object(where, format), ("type", "schema"))
    one_of("json_schema")(f"{where}.type", format.get("type"))
    schema = json_object(f"{where}.schema", format.get("schema"))
    return OutputConfig(effort, Constraint("json_schema", schema, where))


output_config = Check(
    {
        "type": "object",
        "properties": {
            "effort": {"enum": [*_EFFORTS, None]},
            "format": {
                "type": ["object", "null"],
                "properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}},
                "required": ["type", "schema"],
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    },
    _read_output_config,
)


def _read_tools(name: str, value: Any) -> tuple[Tool, ...]:
    given = json_array(name, value)
    if len(given) > MOST_TOOLS:
        raise invalid(name, f"{name} holds {len(given)} tools, {MOST_TOOLS} are taken")
    read = tuple(_read_tool(f"{name}[{at}]", tool) for at, tool in enumerate(given))
    if len({tool.name for tool in read}) < len(read):
        raise invalid(name, f"{name} holds two tools of one name; give each its own")
    return read


# What of a tool is about Anthropic's own service; examples of its input are not shown to the model.
_TOOL_EXTRAS = ("cache_control", "defer_loading", "eager_input_streaming", "input_examples")


def _read_tool(where: str, value: Any) -> Tool:
    given = json_object(where, value)
    if given.get("type") not in (None, "custom"):
        raise invalid(
            f"{where}.type",
            f"{where}.type {shown(given['type'])} is refused: this server runs no tools; give tools that you run, with "
            "name and input_schema",
        )
    known_keys(
        where,
        given,
        ("type", "name", "description", "input_schema", "strict", "allowed_callers", *_TOOL_EXTRAS),
    )
    name = string(f"{where}.name", given.get("name"))
    if not _TOOL_NAME.fullmatch(name):
        raise invalid(
            f"{where}.name",
            f"{where}.name must be 1 to 128 letters, digits, underscores and dashes, not {shown(name)}",
        )
    if given.get("allowed_callers") is not None:
        one_of(["direct"])(f"{where}.allowed_callers", given["allowed_callers"])
    description, strict = given.get("description"), given.get("strict")
    return Tool(
        name,
        "" if description is None else string(f"{where}.description", description),
        json_object(f"{where}.input_schema", given.get("input_schema")),
        strict is not None and boolean(f"{where}.strict", strict),
    )


tools = Check(
    {
        "type": "array",
        "maxItems": MOST_TOOLS,
        "items": {
            "type": "object",
            "properties": {
                "type": {"enum": ["custom", None]},
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,128}$"},
                "description": {"type": ["string", "null"]},
                "input_schema": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
                "allowed_callers": {"enum": [["direct"], None]},
                **{name: {"description": "Taken, without effect."} for name in _TOOL_EXTRAS},
            },
            "required": ["name", "input_schema"],
            "additionalProperties": False,
        },
    },
    _read_tools,
)


class Chosen(NamedTuple):
    """Which tools may or must be called, in the words of chat completions, and whether several may."""

    choice: str | ToolName = "auto"
    parallel: bool = True


def _read_tool_choice(name: str, value: Any) -> Chosen:
    given = json_object(name, value)
    kind = one_of("auto", "any", "tool", "none")(f"{name}.type", given.get("type"))
    keys = {"tool": ("type", "name", "disable_parallel_tool_use"), "none": ("type",)}
    known_keys(name, given, keys.get(kind, ("type", "disable_parallel_tool_use")))
    single = given.get("disable_parallel_tool_use")
    parallel = single is None or not boolean(f"{name}.disable_parallel_tool_use", single)
    if kind == "tool":
        return Chosen(ToolName(string(f"{name}.name", given.get("name"))), parallel)
    return Chosen("required" if kind == "any" else kind, parallel)


_single = {"disable_parallel_tool_use": {"type": ["boolean", "null"]}}
tool_choice = Check(
    {
        "anyOf": [
            {
                "type": "object",
                "properties": {"type": {"enum": ["auto", "any"]}, **_single},
                "required": ["type"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"const": "tool"}, "name": {"type": "string"}, **_single},
                "required": ["type", "name"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"const": "none"}},
                "required": ["type"],
                "additionalProperties": False,
            },
        ]
    },
    _read_tool_choice,
)


def _read_stops(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
        raise invalid(name, f"{name} must be an array of strings, not {shown(value)}")
    if len(value) > MOST_STOPS:
        raise invalid(name, f"{name} must hold {MOST_STOPS} strings at most, not {len(value)}")
    if any(not 0 < len(stop) <= MAX_STOP for stop in value):
        raise invalid(name, f"{name} must hold strings of 1 to {MAX_STOP} characters")
    return tuple(dict.fromkeys(value))


stop_sequences = Check(
    {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP},
        "maxItems": MOST_STOPS,
    },
    _read_stops,
)


def _read_metadata(name: str, value: Any) -> None:
    given = json_object(name, value)
    known_keys(name, given, ("user_id",))
    if given.get("user_id") is not None:
        string(f"{name}.user_id", given["user_id"])


metadata = Check(
    {
        "type": "object",
        "properties": {"user_id": {"type": ["string", "null"]}},
        "additionalProperties": False,
    },
    _read_metadata,
)


def _read_context_management(name: str, value: Any) -> None:
    given = json_object(name, value)
    known_keys(name, given, ("edits",))
    edits = given.get("edits")
    for at, edit in enumerate([] if edits is None else json_array(f"{name}.edits", edits)):
        kind = edit.get("type") if isinstance(edit, dict) else None
        if not isinstance(kind, str) or not kind.startswith("clear_thinking_"):
            raise invalid(
                f"{name}.edits[{at}].type",
                f"{name}.edits[{at}].type {shown(kind)} is refused: no input is left out but thoughts; shorten the "
                "conversation yourself",
            )


context_management = Check(
    {
        "type": "object",
        "properties": {
            "edits": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "properties": {"type": {"type": "string", "pattern": "^clear_thinking_"}},
                    "required": ["type"],
                },
            }
        },
        "additionalProperties": False,
    },
    _read_context_management,
)

_RUNS_NOTHING = "this server runs no tools; give tools that you run"
_OPENAI = "this API has no such field; use /v1/chat/completions"

FIELDS: Fields = {
    # Anthropic's fields
    "model": Field(REWRITE, "must name the model that is served", string),
    "messages": Field(
        REWRITE, "the thought prompt is put round the last user message; thoughts are taken out", messages
    ),
    "max_tokens": Field(REWRITE, "bounds thought and response together", integer(1, 2**31 - 1)),
    "system": Field(REWRITE, "a system message before the messages", system),
    "stream": Field(REWRITE, "the engine is always asked to stream", boolean),
    "stop_sequences": Field(REWRITE, "matched by the gateway, on the response only", stop_sequences),
    "thinking": Field(
        REWRITE,
        "`budget_tokens` bounds the thought; `disabled` asks for a response without one where the thought format can "
        "tell, and for a short one elsewhere; the thought is hidden whatever `display` says",
        thinking,
    ),
    "output_config": Field(
        REWRITE,
        "`effort` bounds the thought; `format` binds the response only, the thought stays free",
        output_config,
    ),
    "tools": Field(REWRITE, "tools that the client runs; calls are read out of the response only", tools),
    "tool_choice": Field(REWRITE, "binds the response only; the thought stays free", tool_choice),
    "temperature": Field(PASS, "", number(0, 1)),
    "top_p": Field(PASS, "", number(0, 1)),
    "top_k": Field(PASS, "", integer(0, 2**31 - 1)),
    "metadata": Field(DROP, "", metadata),
    "service_tier": Field(DROP, "", one_of("auto", "standard_only")),
    "speed": Field(DROP, "`standard`, which changes nothing", one_of("standard")),
    "cache_control": Field(DROP, "the engine caches prompts by itself", CACHE_CONTROL),
    "context_management": Field(
        DROP, "`clear_thinking_...`: past thoughts are left out anyway", context_management
    ),
    "diagnostics": Field(DROP, "", json_object),
    "user_profile_id": Field(DROP, "", string),
    "container": Field(REFUSE, _RUNS_NOTHING),
    "mcp_servers": Field(REFUSE, _RUNS_NOTHING),
    "inference_geo": Field(REFUSE, "this server is where it is"),
    "workspace_id": Field(REFUSE, "there are no workspaces; the key decides"),
    "output_format": Field(REFUSE, "use output_config.format"),
    # What clients of the other APIs may try
    **{
        name: Field(REFUSE, _OPENAI)
        for name in ("n", "seed", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty")
    },
    "stop": Field(REFUSE, "use stop_sequences"),
    "response_format": Field(REFUSE, "use output_config.format"),
    "reasoning_effort": Field(REFUSE, "use output_config.effort"),
    **ENGINE_EXTRAS,
}
