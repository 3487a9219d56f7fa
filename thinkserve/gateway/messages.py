"""The messages that go to the engine: written anew, without smuggled thoughts, with the thought prompt put in."""

from __future__ import annotations

from typing import Any

from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.wire import MAX_DEPTH, nested_within
from thinkserve.thoughts import ThoughtFormat, strip_thoughts

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Thoughts that a client sends back, and fields of OpenAI's answers that clients replay: neither goes on.
DROPPED = frozenset(
    {"reasoning", "reasoning_content", "reasoning_details", "thinking", "refusal", "annotations"}
)
KEPT = frozenset({"role", "content", "name"})


def upstream_messages(
    messages: list[Any], format: ThoughtFormat, *, direct: bool, allow: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Read a client's messages and write those for the engine.

    Args:
        messages: as parsed from the body.
        format: what its markers are in past assistant turns, and the thought prompt.
        direct: ask without the thought prompt.
        allow: content part types and message fields beyond text that the operator lets pass.

    Raises:
        ApiError: 400, naming the message and what is wrong with it.
    """
    written = [_message(f"messages[{at}]", message, format, allow) for at, message in enumerate(messages)]
    if direct or format.prompt is None:
        return written
    for message in reversed(written):
        if message["role"] == "user":
            message["content"] = _asked_to_think(message["content"], format)
            return written
    raise invalid("messages", "messages must hold a user message: the thought prompt goes round the last one")


def _message(where: str, message: Any, format: ThoughtFormat, allow: frozenset[str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(where, f"{where} must be an object, not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}")
    if allow and not nested_within(message, MAX_DEPTH):
        raise invalid(where, f"{where} is nested too deep; {MAX_DEPTH} levels are taken")
    for key, value in message.items():
        if key not in KEPT and key not in DROPPED and key not in allow and value is not None:
            raise invalid(
                f"{where}.{key[:100]}", f"{where}.{key[:100]} is not supported", code="unsupported_field"
            )
    written: dict[str, Any] = {key: message[key] for key in allow if message.get(key) is not None}
    written["role"] = ROLES[role]
    content = _content(f"{where}.content", message.get("content"), role, allow)
    if role == "assistant":
        content = _without_thoughts(content, format)
    written["content"] = content
    if (name := message.get("name")) is not None:
        if not isinstance(name, str):
            raise invalid(f"{where}.name", f"{where}.name must be a string, not {type(name).__name__}")
        written["name"] = name
    return written


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
