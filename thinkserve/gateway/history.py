"""The messages that go to the engine: written anew, without smuggled thoughts, with the thought prompt put in.

Past tool calls and their results go to the engine as they are, for the chat template to write, or as text where the
template knows no tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import string
from thinkserve.gateway.tools import Tools, past_calls, past_result, tool_prompt
from thinkserve.gateway.wire import MAX_DEPTH, nested_within
from thinkserve.thoughts import ThoughtFormat, strip_thoughts

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# Thoughts that a client sends back, and fields of OpenAI's answers that clients replay: neither goes on.
DROPPED = frozenset(
    {"reasoning", "reasoning_content", "reasoning_details", "thinking", "refusal", "annotations"}
)
KEPT = frozenset({"role", "content", "name"})
_KEPT_BY_ROLE = {
    "assistant": frozenset({"tool_calls"}),
    "tool": frozenset({"tool_call_id"}),
}


class Rules(msgspec.Struct, frozen=True):
    """What the messages of one request are written by.

    Args:
        format: what its markers are in past assistant turns, and the thought prompt.
        direct: ask without the thought prompt.
        allow: content part types and message fields beyond text that the operator lets pass.
        tools: the tools that the model may call.
        write_tools: the chat template knows no tools, so they are written as text here.
        thoughts: past thoughts that the client brought back sealed, by the index of their message.
        most: how many messages are taken.
        name: what the endpoint calls them.
    """

    format: ThoughtFormat
    direct: bool = False
    allow: frozenset[str] = frozenset()
    tools: Tools | None = None
    write_tools: bool = False
    thoughts: Mapping[int, str] | None = None
    most: int = 2048
    name: str = "messages"


def upstream_messages(messages: list[Any], rules: Rules) -> list[dict[str, Any]]:
    """Read a client's messages and write those for the engine.

    Args:
        messages: as in the body of a chat completion.
        rules: what they are written by.

    Raises:
        ApiError: 400, naming the message and what is wrong with it.
    """
    if len(messages) > rules.most:
        raise invalid(rules.name, f"{rules.name} holds {len(messages)} messages, {rules.most} are taken")
    written = [_message(f"{rules.name}[{at}]", message, rules) for at, message in enumerate(messages)]
    for at, thought in (rules.thoughts or {}).items():
        written[at]["content"] = _with_thought(thought, written[at]["content"], rules.format)
    if not rules.direct and rules.format.prompt is not None:
        _ask_to_think(written, rules)
    return _with_tools_as_text(written, rules) if rules.write_tools else written


def _ask_to_think(written: list[dict[str, Any]], rules: Rules) -> None:
    for message in reversed(written):
        if message["role"] == "user":
            message["content"] = _asked_to_think(message["content"], rules.format)
            return
    raise invalid(
        rules.name,
        f"{rules.name} must hold a user message with text: the thought prompt goes round the last one",
    )


def _with_tools_as_text(written: list[dict[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """The same conversation for a chat template that knows no tools."""
    tools = rules.tools
    if tools is not None and tools.allowed:
        asked = tool_prompt(tools)
        if written and written[0]["role"] == "system" and isinstance(written[0]["content"], str):
            written[0]["content"] += f"\n\n{asked}"
        elif written and written[0]["role"] == "system":
            written[0]["content"] = [*written[0]["content"], {"type": "text", "text": f"\n\n{asked}"}]
        else:
            written.insert(0, {"role": "system", "content": asked})
    format = tools.format if tools is not None else None
    told: list[dict[str, Any]] = []
    in_results = False
    for message in written:
        if message["role"] == "tool":
            text = past_result(message, format)
            if in_results:
                # Several results are one turn: many templates want user and assistant to take turns.
                told[-1]["content"] += f"\n{text}"
            else:
                told.append({"role": "user", "content": text})
            in_results = True
            continue
        in_results = False
        if "tool_calls" in message:
            calls = past_calls(message, format, field=rules.name)
            del message["tool_calls"]
            message["content"] = f"{_plain(message['content'])}\n{calls}".strip()
        told.append(message)
    return told


def _message(where: str, message: Any, rules: Rules) -> dict[str, Any]:
    allow = rules.allow
    if not isinstance(message, dict):
        raise invalid(where, f"{where} must be an object, not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}")
    if allow and not nested_within(message, MAX_DEPTH):
        raise invalid(where, f"{where} is nested too deep; {MAX_DEPTH} levels are taken")
    kept = KEPT | _KEPT_BY_ROLE.get(role, frozenset())
    for key, value in message.items():
        if key not in kept and key not in DROPPED and key not in allow and value is not None:
            raise invalid(
                f"{where}.{key[:100]}", f"{where}.{key[:100]} is not supported", code="unsupported_field"
            )
    written: dict[str, Any] = {key: message[key] for key in allow if message.get(key) is not None}
    written["role"] = ROLES[role]
    content = _content(f"{where}.content", message.get("content"), role, allow)
    if role == "assistant":
        content = _without_thoughts(content, rules.format)
    written["content"] = content
    if (name := message.get("name")) is not None:
        written["name"] = string(f"{where}.name", name)
    if role == "tool":
        written["tool_call_id"] = string(f"{where}.tool_call_id", message.get("tool_call_id"))
    # An empty list is what clients send back that keep every field.
    if role == "assistant" and message.get("tool_calls"):
        written["tool_calls"] = _tool_calls(f"{where}.tool_calls", message["tool_calls"])
    return written


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise invalid(where, f"{where} must be an array, not {type(calls).__name__}")
    return [_tool_call(f"{where}[{at}]", call) for at, call in enumerate(calls)]


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise invalid(where, f"{where} must be a call of a function: {{id, type, function}}")
    arguments = string(f"{where}.function.arguments", function.get("arguments"))
    return {
        "id": string(f"{where}.id", call.get("id")),
        "type": "function",
        "function": {
            "name": string(f"{where}.function.name", function.get("name")),
            "arguments": arguments or "{}",
        },
    }


def _with_thought(
    thought: str, content: str | list[dict[str, Any]], format: ThoughtFormat
) -> str | list[dict[str, Any]]:
    """A past turn as the model wrote it: its thought, the closing marker, its response."""
    opening = f"{format.opening[0]}\n" if format.opening else ""
    return f"{opening}{thought.strip()}\n{format.closing[0]}\n{_plain(content)}"


def _plain(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _content(where: str, content: Any, role: str, allow: frozenset[str]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list) or not content:
        raise invalid(where, f"{where} must be a string or an array of parts, not {type(content).__name__}")
    return [_part(f"{where}[{at}]", part, allow) for at, part in enumerate(content)]


def _part(where: str, part: Any, allow: frozenset[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(kind, str) and kind in allow:
        return dict(part)
    if kind == "text":
        raise invalid(f"{where}.text", f"{where}.text must be a string")
    raise ApiError(
        400,
        f"{where}.type must be text, not {shown(kind)}; the operator may let other parts pass with --allow-field",
        param=f"{where}.type",
    )


def _without_thoughts(
    content: str | list[dict[str, Any]], format: ThoughtFormat
) -> str | list[dict[str, Any]]:
    # A `Response` is a str of its own type, which the JSON encoder does not take.
    if isinstance(content, str):
        return str(strip_thoughts(content, format))
    # A marker may be cut in two by a part's border, so the parts are read as the one text that they are.
    others = [part for part in content if part["type"] != "text"]
    text = "".join(part["text"] for part in content if part["type"] == "text")
    return [{"type": "text", "text": str(strip_thoughts(text, format))}, *others]


def _asked_to_think(content: str | list[dict[str, Any]], format: ThoughtFormat) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return format.thought_prompt(content)
    texts = [at for at, part in enumerate(content) if part["type"] == "text"]
    if not texts:
        return [*content, {"type": "text", "text": format.thought_prompt("")}]
    before, after = format.thought_prompt_halves()
    content = [dict(part) for part in content]
    content[texts[0]]["text"] = before + content[texts[0]]["text"]
    content[texts[-1]]["text"] += after
    return content
