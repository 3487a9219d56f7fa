"""What a client of `/v1/messages` says: Anthropic's messages and blocks, written as messages of chat completions.

Thoughts that clients send back are dropped. Messages of one role that follow each other are one message, as at Anthropic;
the results of tools in a user's message become messages of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import Check, json_object, string
from thinkserve.gateway.wire import encode

Block = Mapping[str, Any]
Turn = tuple[str, list[Block]]

CACHE_CONTROL = Check({"description": "Taken, without effect."}, lambda name, value: None)

# What each block may hold. The values of those that nothing is made of here are not looked at.
_TEXT = ("type", "text", "cache_control", "citations")
_TOOL_USE = ("type", "id", "name", "input", "cache_control", "caller", "toolset_name")
_TOOL_RESULT = ("type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name")
_THOUGHTS = ("thinking", "redacted_thinking")
_TAKEN = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", *_THOUGHTS),
    "system": ("text",),
}
_REFUSED = {
    "image": "this model reads text only",
    "document": "this model reads text only; send the document's text",
    "search_result": "this model reads text only; send the result's text",
    "container_upload": "there is no container",
}


def known_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse an object with a key that is not known.

    Raises:
        ApiError: 400, naming the key.
    """
    for key in given:
        if key not in known:
            raise invalid(
                f"{where}.{key[:100]}", f"{where}.{key[:100]} is not supported", code="unsupported_field"
            )


def _read_messages(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise invalid(name, f"{name} must be an array with at least one message, not {shown(value)}")
    turns: list[Turn] = []
    for at, message in enumerate(value):
        role, blocks = _turn(f"{name}[{at}]", message)
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if turns[-1][0] == "assistant":
        raise invalid(
            name,
            f"{name} must not end with an assistant message: the beginning of a response cannot be given, it would "
            "decide what is a thought",
        )
    return [written for role, blocks in turns for written in _written(role, blocks)]


def _turn(where: str, message: Any) -> Turn:
    given = json_object(where, message)
    known_keys(where, given, ("role", "content"))
    role = given.get("role")
    if not isinstance(role, str) or role not in _TAKEN:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(_TAKEN)}, not {shown(role)}")
    content = given.get("content")
    if isinstance(content, str):
        return role, [{"type": "text", "text": content}]
    # An answer of nothing but a thought has no blocks, and comes back like that.
    if not isinstance(content, list) or not (content or role == "assistant"):
        raise invalid(
            f"{where}.content",
            f"{where}.content must be a string or an array with at least one block, not {shown(content)}",
        )
    return role, [_block(f"{where}.content[{at}]", block, role) for at, block in enumerate(content)]


def _block(where: str, block: Any, role: str) -> Block:
    given: Block = json_object(where, block)
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _TAKEN[role]:
        raise _refused(where, kind, role)
    if kind == "text":
        known_keys(where, given, _TEXT)
        string(f"{where}.text", given.get("text"))
    elif kind == "tool_use":
        known_keys(where, given, _TOOL_USE)
        string(f"{where}.id", given.get("id"))
        string(f"{where}.name", given.get("name"))
        json_object(f"{where}.input", given.get("input"))
    elif kind == "tool_result":
        known_keys(where, given, _TOOL_RESULT)
        string(f"{where}.tool_use_id", given.get("tool_use_id"))
        if not isinstance(given.get("is_error"), bool | None):
            raise invalid(f"{where}.is_error", f"{where}.is_error must be true or false")
        content = given.get("content")
        given = {**given, "content": "" if content is None else _read_texts(f"{where}.content", content)}
    return given


def _refused(where: str, kind: Any, role: str) -> ApiError:
    why = _REFUSED.get(kind) if isinstance(kind, str) else None
    if why is not None:
        return invalid(f"{where}.type", f"{where}.type {kind} is refused: {why}", code="unsupported_field")
    return invalid(
        f"{where}.type",
        f"{where}.type must be one of {', '.join(_TAKEN[role])} in a message of the role {role}, not {shown(kind)}",
    )


def _read_texts(where: str, value: Any) -> str:
    """A string, or blocks of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(where, f"{where} must be a string or an array of text blocks, not {shown(value)}")
    return _joined(_block(f"{where}[{at}]", block, "system") for at, block in enumerate(value))


def _joined(blocks: Iterable[Block]) -> str:
    # As engines join text parts for chat templates that take one string.
    return "\n".join(block["text"] for block in blocks)


def _written(role: str, blocks: list[Block]) -> list[dict[str, Any]]:
    """A turn as messages of chat completions."""
    if role == "assistant":
        return [_assistant(blocks)]
    written = [_result(block) for block in blocks if block["type"] == "tool_result"]
    texts = [block for block in blocks if block["type"] == "text"]
    return [*written, {"role": role, "content": _joined(texts)}] if texts else written


def _assistant(blocks: list[Block]) -> dict[str, Any]:
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": str(encode(block["input"]), "utf-8")},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    # One text: a marker may be cut in two by a block's border.
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _result(block: Block) -> dict[str, Any]:
    content = block["content"]
    if block.get("is_error"):
        content = f"Error: {content}"
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _block_schema(keys: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    required = [key for key, schema in properties.items() if not schema.pop("optional", False)]
    return _object({**{key: {} for key in keys}, **properties}, required)


_STRING = {"type": "string"}
_text_block = _block_schema(_TEXT, type={"const": "text"}, text=_STRING)
_texts = {"anyOf": [_STRING, {"type": "array", "items": _text_block}]}
_result_block = _block_schema(
    _TOOL_RESULT,
    type={"const": "tool_result"},
    tool_use_id=_STRING,
    content={"anyOf": [*_texts["anyOf"], {"type": "null"}], "optional": True},
    is_error={"type": ["boolean", "null"], "optional": True},
)
_use_block = _block_schema(
    _TOOL_USE, type={"const": "tool_use"}, id=_STRING, name=_STRING, input={"type": "object"}
)
_thought_block = {
    "type": "object",
    "properties": {"type": {"enum": list(_THOUGHTS)}},
    "required": ["type"],
    "description": "Dropped.",
}


def _message_schema(role: str, blocks: list[dict[str, Any]], least: int) -> dict[str, Any]:
    array = {"type": "array", "items": {"anyOf": blocks}, "minItems": least}
    return _object({"role": {"const": role}, "content": {"anyOf": [_STRING, array]}}, ["role", "content"])


messages = Check(
    {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                _message_schema("user", [_text_block, _result_block], 1),
                _message_schema("assistant", [_text_block, _use_block, _thought_block], 0),
                _message_schema("system", [_text_block], 1),
            ]
        },
    },
    _read_messages,
)
system = Check(_texts, _read_texts)
